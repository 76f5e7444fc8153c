//! The names and addresses of network interfaces (man 3 getifaddrs, if_indextoname).

use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ptr;

/// Addresses of one interface that are tried. A program that is bound to the interface takes
/// connections at each of them, so the first mostly does.
const MAX_TRIED: usize = 4;

/// The name of an interface; `None` if there is none with this index.
pub fn name(index: u32) -> Option<String> {
    let mut buffer = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that if_indextoname is to be given; it writes a string with its
    // end into it, or returns null.
    let name = unsafe { libc::if_indextoname(index, buffer.as_mut_ptr()) };
    if name.is_null() {
        return None;
    }
    // SAFETY: as above; the buffer lives until the end of this function.
    let name = unsafe { CStr::from_ptr(buffer.as_ptr()) };
    Some(name.to_string_lossy().into_owned())
}

/// The addresses of an interface that are `wanted`, the first few; none if the interface is gone.
pub fn addresses(index: u32, wanted: impl Fn(IpAddr) -> bool) -> Vec<IpAddr> {
    let Some(name) = name(index) else {
        return Vec::new();
    };
    let mut first = ptr::null_mut();
    // SAFETY: getifaddrs writes a pointer to a list of its own there, or fails and writes nothing.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut next = first;
    // SAFETY: `next` is null or an element of the list, which is freed below only.
    while let Some(element) = unsafe { next.as_ref() } {
        next = element.ifa_next;
        // SAFETY: every element has a name, a string with its end.
        let named = unsafe { CStr::from_ptr(element.ifa_name) };
        if named.to_bytes() == name.as_bytes()
            && let Some(ip) = address(element)
            && wanted(ip)
            && found.len() < MAX_TRIED
        {
            found.push(ip);
        }
    }
    // SAFETY: the list is what getifaddrs returned, and nothing refers to it any more.
    unsafe { libc::freeifaddrs(first) };
    found
}

fn address(element: &libc::ifaddrs) -> Option<IpAddr> {
    let address = element.ifa_addr;
    if address.is_null() {
        return None;
    }
    // SAFETY: an address that is not null begins with its family, and is as long as that one's are.
    // It may not be aligned for the larger types, so it is copied.
    unsafe {
        match i32::from(ptr::read_unaligned(address).sa_family) {
            libc::AF_INET => {
                let v4: libc::sockaddr_in = ptr::read_unaligned(address.cast());
                Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
            }
            libc::AF_INET6 => {
                let v6: libc::sockaddr_in6 = ptr::read_unaligned(address.cast());
                Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_the_first_interface() {
        assert_eq!(name(1).as_deref(), Some("lo"));
        assert_eq!(addresses(1, |ip| ip.is_ipv4()), [Ipv4Addr::LOCALHOST]);
        assert_eq!(name(u32::MAX), None);
        assert_eq!(addresses(u32::MAX, |_| true), Vec::<IpAddr>::new());
    }
}
