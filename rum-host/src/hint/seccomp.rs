//! Seccomp user notification of listen(2): only the system calls.
//!
//! A filter makes the kernel ask the owner of a descriptor, the [`Listener`], before a program's
//! `listen()` proceeds. The answer is always to continue ([`Listener::answer`]): seccomp serves as
//! an event, not as a policy. So it does no harm if the program changes its memory or descriptors
//! meanwhile (the warning of seccomp_unotify(2) is about decisions).
//!
//! Only the machine's own ABI is filtered: i386 has another `arch`, x32 another number, and both
//! pass. The calling thread is blocked until the answer. Once no process holds the descriptor any
//! more, `listen()` fails with ENOSYS for good.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// `AUDIT_ARCH_*` of linux/audit.h: the only ABI that is filtered. None: no notifications.
const ARCH: Option<u32> = if cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
    Some(0xC000_003E)
} else if cfg!(all(target_arch = "aarch64", target_endian = "little")) {
    Some(0xC000_00B7)
} else if cfg!(target_arch = "riscv64") {
    Some(0xC000_00F3)
} else {
    None
};
/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// A system call that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    id: u64,
    /// The calling thread's id in our PID namespace; 0 if it is not visible there.
    pub pid: u32,
    /// The descriptor argument of `listen()`.
    pub fd: i32,
}

/// The notification descriptor of a filter. It may be passed to another process.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// Installs the filter: from now on the kernel asks before this thread, or anything it starts, may
/// `listen()`. Allocates nothing: safe between fork and exec.
///
/// # Errors
/// EACCES without CAP_SYS_ADMIN and without no_new_privs; EBUSY if this process already has a
/// notifying filter (of a container runtime, or of another rum); EINVAL before Linux 5.0;
/// EOPNOTSUPP for a machine whose ABI is not known here (seccomp(2)).
pub fn install() -> io::Result<Listener> {
    let arch = ARCH.ok_or(Errno::OPNOTSUPP)?;
    let statement = |code: u32, k: u32| (code, 0, 0, k);
    let equal =
        |k: u32, otherwise: u8| (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, otherwise, k);
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let ret = libc::BPF_RET | libc::BPF_K;
    let listen = u32::try_from(libc::SYS_listen).map_err(|_| Errno::OPNOTSUPP)?;
    let mut program = [
        statement(load, ARCHITECTURE),
        equal(arch, 3),
        statement(load, NUMBER),
        equal(listen, 1),
        statement(ret, libc::SECCOMP_RET_USER_NOTIF),
        statement(ret, libc::SECCOMP_RET_ALLOW),
    ]
    .map(|(code, jt, jf, k)| libc::sock_filter {
        // All classic BPF codes fit (linux/bpf_common.h).
        code: code as u16,
        jt,
        jf,
        k,
    });
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SPEC_ALLOW: no speculation mitigation that the program did not ask for. WAIT_KILLABLE_RECV
    // (Linux 5.19): a signal that the program handles does not interrupt a call being answered.
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    match set(
        flags | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
        &program,
    ) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => set(flags, &program),
        other => other,
    }
}

fn set(flags: libc::c_ulong, program: &libc::sock_fprog) -> io::Result<Listener> {
    // SAFETY: the BPF program lives during the call, which copies it (seccomp(2)).
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::from_ref(program),
        )
    };
    match i32::try_from(fd) {
        // SAFETY: a new descriptor, close-on-exec, that nothing else uses.
        Ok(fd @ 0..) => Ok(Listener(unsafe { OwnedFd::from_raw_fd(fd) })),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Listener {
    /// Takes a descriptor that another process sent.
    ///
    /// # Errors
    /// EINVAL if it is not a seccomp notification descriptor.
    pub fn checked(fd: OwnedFd) -> io::Result<Self> {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        match std::fs::read_link(path)?.as_os_str().as_encoded_bytes() {
            b"anon_inode:seccomp notify" => Ok(Self(fd)),
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// Makes the kernel run the holder, and then the waiting program, on the processor where the
    /// other one stops: waking an idle processor takes several times as long as all the rest. Linux
    /// 6.6 and newer; without it everything works, but slower.
    pub fn share_processor(&self) {
        /// `SECCOMP_IOCTL_NOTIF_SET_FLAGS`: `_IOW('!', 4, __u64)` (linux/seccomp.h).
        const SET_FLAGS: libc::Ioctl = 0x4008_2104;
        const SYNC_WAKE_UP: libc::c_ulong = 1;
        // SAFETY: the flags are passed by value, not by address.
        let _ = unsafe { libc::ioctl(self.0.as_raw_fd(), SET_FLAGS, SYNC_WAKE_UP) };
    }

    /// Waits for the next call. None if its thread is gone.
    ///
    /// # Errors
    /// Those of seccomp_unotify(2), none of which is transient.
    pub fn receive(&self) -> io::Result<Option<Call>> {
        // SAFETY: a plain structure of integers, which the kernel requires to be zero.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the request number encodes the structure's size, which is what the kernel writes
        // (_IOWR, linux/seccomp.h), even a kernel that knows a longer one.
        let done = unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_RECV,
                &raw mut call,
            )
        };
        if done == 0 {
            return Ok(Some(Call {
                id: call.id,
                pid: call.pid,
                // Truncates as the kernel does (listen(2) takes an int).
                fd: call.data.args[0] as i32,
            }));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::EINTR) => Ok(None),
            _ => Err(error),
        }
    }

    /// Lets `call` proceed as without a filter. An error is ignored: the thread was killed
    /// meanwhile.
    pub fn answer(&self, call: Call) {
        let mut answer = libc::seccomp_notif_resp {
            id: call.id,
            val: 0,
            error: 0,
            flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        };
        // SAFETY: as above; the kernel reads it.
        let _ = unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_SEND,
                &raw mut answer,
            )
        };
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
