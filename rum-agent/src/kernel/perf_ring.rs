//! Step 1: one perf event on one CPU and the ring buffer that it writes to (man 2
//! perf_event_open).
//!
//! The kernel appends records to the ring and moves `head`; the reader takes the records between
//! `tail` and `head` and moves `tail`. Both only grow; their positions in the ring are modulo its
//! size, so a record may wrap around the end. `head` is read with acquire before the records,
//! `tail` written with release after them.
//!
//! A full ring drops records. The kernel reports that in a LOST record, but only together with the
//! next record that fits, which may be hours later. So a nearly full ring counts as having lost
//! records ([`PerfRing::drain`]).
//!
//! Invariants: only bytes between `tail` and `head` are read, which the kernel does not write until
//! `tail` has passed them; they are copied before they are parsed, and no content panics or loops.

use std::ffi::CStr;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::ioctl::{IntegerSetter, NoArg, Opcode, ioctl, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Pages of a ring, a power of two: with 4 KiB pages it holds about 300 samples, which a CPU can
/// produce in some milliseconds. More pages would add resident memory for each CPU.
const PAGES: usize = 8;
/// Free space below which a ring counts as full: no record of ours is larger.
const RESERVE: u64 = 512;
/// PERF_TYPE_TRACEPOINT
const TYPE_TRACEPOINT: u32 = 2;
/// PERF_SAMPLE_TID: process and thread id come first in a sample.
const SAMPLE_TID: u64 = 1 << 1;
/// PERF_SAMPLE_TIME: then the time of the event.
const SAMPLE_TIME: u64 = 1 << 2;
/// PERF_SAMPLE_RAW: then a length and the tracepoint's own bytes.
const SAMPLE_RAW: u64 = 1 << 10;
/// Bit `disabled` of the attribute's flags.
const DISABLED: u64 = 1;
/// Bit `use_clockid`: times are those of the clock `clockid`.
const USE_CLOCKID: u64 = 1 << 25;
/// PERF_FLAG_FD_CLOEXEC
const FD_CLOEXEC: libc::c_ulong = 1 << 3;
/// PERF_RECORD_LOST
const RECORD_LOST: u32 = 2;
/// PERF_RECORD_THROTTLE
const RECORD_THROTTLE: u32 = 5;
/// PERF_RECORD_SAMPLE
const RECORD_SAMPLE: u32 = 9;
/// Offsets of `data_head` and `data_tail` in struct perf_event_mmap_page.
const DATA_HEAD: usize = 1024;
const DATA_TAIL: usize = 1032;
/// PERF_EVENT_IOC_ENABLE and PERF_EVENT_IOC_SET_FILTER
const IOC_ENABLE: Opcode = opcode::none(b'$', 0);
const IOC_SET_FILTER: Opcode = opcode::write::<*const u8>(b'$', 6);

/// struct perf_event_attr up to `clockid`, which came with Linux 4.1 (PERF_ATTR_SIZE_VER3); the
/// tracepoint itself is younger.
#[repr(C)]
#[derive(Debug, Default)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
    branch_sample_type: u64,
    sample_regs_user: u64,
    sample_stack_user: u32,
    clockid: i32,
}

/// One record of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// A sample: the process (0 if it is not in our PID namespace), the time, and the event's
    /// bytes.
    Sample {
        /// Process id.
        pid: u32,
        /// Nanoseconds on CLOCK_MONOTONIC.
        at_ns: u64,
        /// The tracepoint's fields.
        raw: &'a [u8],
    },
    /// Records were dropped, or the rest cannot be read.
    Lost,
}

/// The records in `bytes`, which start with a record. Unreadable bytes give [`Record::Lost`], the
/// last item; records of other kinds are skipped.
pub fn records(bytes: &[u8]) -> impl Iterator<Item = Record<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let Some((record, after)) = split_record(rest) else {
                rest = &[];
                return Some(Record::Lost);
            };
            rest = after;
            if record.is_some() {
                return record;
            }
        }
        None
    })
}

/// The first record, if it is of interest, and what follows it; `None` when it is malformed.
fn split_record(bytes: &[u8]) -> Option<(Option<Record<'_>>, &[u8])> {
    // struct perf_event_header: type, misc, size (of the whole record).
    let (header, _) = bytes.split_first_chunk::<8>()?;
    let [t0, t1, t2, t3, _, _, s0, s1] = *header;
    let size = usize::from(u16::from_ne_bytes([s0, s1]));
    let body = bytes.get(8..size)?;
    let record = match u32::from_ne_bytes([t0, t1, t2, t3]) {
        RECORD_SAMPLE => Some(sample(body)?),
        RECORD_LOST | RECORD_THROTTLE => Some(Record::Lost),
        _ => None,
    };
    Some((record, bytes.get(size..)?))
}

/// A sample's body: pid, tid, time, length, bytes.
fn sample(body: &[u8]) -> Option<Record<'_>> {
    let (pid, body) = body.split_first_chunk::<4>()?;
    let (_tid, body) = body.split_first_chunk::<4>()?;
    let (time, body) = body.split_first_chunk::<8>()?;
    let (length, body) = body.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
    Some(Record::Sample {
        pid: u32::from_ne_bytes(*pid),
        at_ns: u64::from_ne_bytes(*time),
        raw: body.get(..length)?,
    })
}

/// Position of the bytes from `tail` to `head` in a ring of `size` bytes (a power of two): two
/// ranges, the second for the wrapped part. `None` if that is more than the ring holds.
pub fn spans(size: usize, tail: u64, head: u64) -> Option<[Range<usize>; 2]> {
    let used = usize::try_from(head.wrapping_sub(tail)).ok()?;
    if used > size || !size.is_power_of_two() {
        return None;
    }
    let start = usize::try_from(tail & (size as u64 - 1)).ok()?;
    let first = used.min(size - start);
    Some([start..start + first, 0..used - first])
}

/// A perf event of one CPU with its ring.
#[derive(Debug)]
pub struct PerfRing {
    fd: OwnedFd,
    /// The control page, then the ring.
    map: NonNull<u8>,
    page: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and only to this value; it is shared
// with the kernel only through atomics.
unsafe impl Send for PerfRing {}

impl PerfRing {
    /// Opens tracepoint `id` on `cpu` for all processes, with `filter` (in the syntax of
    /// Documentation/trace/events.rst), and starts it.
    ///
    /// # Errors
    /// EACCES or EPERM without CAP_PERFMON, ENODEV for a CPU that is offline, EINVAL for a bad
    /// filter.
    pub fn open(id: u64, cpu: u32, filter: &CStr) -> io::Result<Self> {
        let attr = Attr {
            kind: TYPE_TRACEPOINT,
            size: size_of::<Attr>() as u32,
            config: id,
            sample_period: 1,
            sample_type: SAMPLE_TID | SAMPLE_TIME | SAMPLE_RAW,
            flags: DISABLED | USE_CLOCKID,
            clockid: libc::CLOCK_MONOTONIC,
            wakeup_events: 1,
            ..Attr::default()
        };
        let cpu = libc::c_int::try_from(cpu).map_err(|_| io::ErrorKind::InvalidInput)?;
        let any_process: libc::pid_t = -1;
        let no_group: libc::c_int = -1;
        // SAFETY: the kernel reads `attr`, whose `size` is that of the struct, during the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attr,
                any_process,
                cpu,
                no_group,
                FD_CLOEXEC,
            )
        };
        let fd = RawFd::try_from(fd).unwrap_or(-1);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just made this descriptor, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };

        let page = rustix::param::page_size();
        // SAFETY: a new mapping at an address of the kernel's choice; it replaces nothing.
        let map = unsafe {
            mmap(
                ptr::null_mut(),
                (1 + PAGES) * page,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                0,
            )
        }?;
        let map = NonNull::new(map.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let ring = Self { fd, map, page };
        // SAFETY: SET_FILTER reads a string that ends with 0; `filter` is one and outlives
        // the call.
        unsafe {
            ioctl(
                ring.fd.as_fd(),
                IntegerSetter::<IOC_SET_FILTER>::new_pointer(filter.as_ptr().cast_mut().cast()),
            )
        }?;
        // SAFETY: ENABLE takes no memory.
        unsafe { ioctl(ring.fd.as_fd(), NoArg::<IOC_ENABLE>::new()) }?;
        Ok(ring)
    }

    /// Appends the records in the ring to `out`, whole. Returns false if records may have been
    /// dropped.
    pub fn drain(&mut self, out: &mut Vec<u8>) -> bool {
        let size = PAGES * self.page;
        let (head, tail) = (self.control(DATA_HEAD), self.control(DATA_TAIL));
        let end = head.load(Ordering::Acquire);
        // Only this process writes the tail.
        let start = tail.load(Ordering::Relaxed);
        let parts = spans(size, start, end);
        for part in parts.iter().flatten() {
            // SAFETY: the part lies within the ring, which starts one page into the mapping,
            // and the kernel does not write between tail and head before tail moves below.
            let bytes = unsafe {
                std::slice::from_raw_parts(
                    self.map.as_ptr().add(self.page + part.start),
                    part.len(),
                )
            };
            out.extend_from_slice(bytes);
        }
        tail.store(end, Ordering::Release);
        parts.is_some() && end.wrapping_sub(start) + RESERVE <= size as u64
    }

    /// A counter in the control page.
    fn control(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: `offset` is that of an aligned 64-bit field inside the first page, which is
        // mapped as long as `self` lives; the kernel accesses it as one word too.
        unsafe { AtomicU64::from_ptr(self.map.as_ptr().add(offset).cast()) }
    }
}

impl AsRawFd for PerfRing {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for PerfRing {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and no reference into it is left. Unmapping
        // an existing mapping does not fail.
        let _ = unsafe { munmap(self.map.as_ptr().cast(), (1 + PAGES) * self.page) };
    }
}

#[cfg(test)]
mod tests;
