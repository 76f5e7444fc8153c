//! System V shared memory that a guest leaves behind.
//!
//! A guest shares its caller's IPC namespace, so that programs inside and outside see each other's
//! shared memory: that is how a second PostgreSQL detects that a data directory is in use
//! (`docs/decisions/0001-pid-and-ipc-namespaces.md`). A segment outlives the processes that used
//! it, so init removes the guest's own segments at its end.
//!
//! Invariant: no segment of a process outside is removed. The kernel records a segment's creator
//! and reports its process id in the PID namespace of the caller: 0 for a creator outside
//! (`shmctl_stat` in ipc/shm.c), even after the creator's death. Semaphores and message queues have
//! no creator, only a last user (GETPID, `msg_lspid`), who may have used one of somebody else; no
//! count of users; and no creation time (`sem_ctime` changes with SETVAL). So they stay, as without
//! rum.

use std::ffi::c_int;
use std::mem::MaybeUninit;

/// From linux/shm.h: the highest index in use.
const SHM_INFO: c_int = 14;
/// From linux/shm.h, Linux 4.17: a segment by its index, whatever its permissions.
const SHM_STAT_ANY: c_int = 15;

/// Removes the segments that this PID namespace created and no process is attached to. Called by
/// its first process once everything else inside has ended. Segments of other users stay.
pub fn remove_segments() {
    let Some((highest, _)) = control(0, SHM_INFO) else {
        return;
    };
    for index in 0..=highest {
        if let Some((id, segment)) = control(index, SHM_STAT_ANY)
            && segment.shm_cpid != 0
            && segment.shm_nattch == 0
        {
            control(id, libc::IPC_RMID);
        }
    }
}

/// shmctl(2): its return value and, for the commands that fill a structure, the structure.
fn control(id: c_int, command: c_int) -> Option<(c_int, libc::shmid_ds)> {
    let mut told = MaybeUninit::<libc::shmid_ds>::zeroed();
    // SAFETY: the kernel writes a `struct shmid_ds` or, for SHM_INFO, a `struct shm_info`, which is
    // shorter.
    let returned = unsafe { libc::shmctl(id, command, told.as_mut_ptr()) };
    // SAFETY: plain integers, for which zero is valid.
    (returned >= 0).then(|| (returned, unsafe { told.assume_init() }))
}
