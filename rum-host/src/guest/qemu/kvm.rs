//! Checks whether KVM works here and runs guest instructions at the processor's speed.
//!
//! In a VM `/dev/kvm` may open and create machines, and then execute nothing, or interpret one
//! instruction after the other; QEMU's translator is then far faster. So a machine with one
//! processor counts to twenty million, which takes a real processor some ten milliseconds. The
//! count cannot be interrupted from within, so a process of its own runs it (the hidden mode
//! [`MODE`]).

use std::fs::File;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use tokio::process::Command;

use crate::guest::SELF;

/// Hidden first argument of the probe process.
pub const MODE: &str = "__rum-kvm";
/// Time for the probe, including its start on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(2);

/// Whether KVM works; otherwise why not, as the end of a sentence.
pub async fn works() -> Result<(), String> {
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    opened.map_err(|error| format!("cannot open /dev/kvm: {error}"))?;
    let mut probe = Command::new(SELF);
    probe.arg(MODE).kill_on_drop(true);
    probe.stdin(Stdio::null()).stdout(Stdio::null());
    match tokio::time::timeout(DEADLINE, probe.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("KVM does not work here: {}", said.trim()))
        }
        Ok(Err(error)) => Err(format!("KVM cannot be tried: {error}")),
        Err(_) => Err("KVM does not execute a guest, or too slowly".to_owned()),
    }
}

/// Runs the probe in that process. Reports a failure on stderr.
pub fn probe() -> ExitCode {
    match count() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            rum_shared::lines::say_on_stderr(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// On other architectures opening the device has to suffice.
#[cfg(not(target_arch = "x86_64"))]
fn count() -> std::io::Result<()> {
    Ok(())
}

#[cfg(target_arch = "x86_64")]
fn count() -> std::io::Result<()> {
    use kvm_bindings::kvm_userspace_memory_region;
    use kvm_ioctls::{Kvm, VcpuExit};

    /// Address of the guest's memory, which holds only the program.
    const AT: u64 = 0x1000;
    /// A processor begins in real mode, with operands of 16 bits unless prefixed.
    const PROGRAM: &[u8] = &[
        0x66, 0xb9, 0x00, 0x2d, 0x31, 0x01, // mov ecx, 20000000
        0x66, 0x49, // dec ecx
        0x75, 0xfc, // jnz -4
        0xe6, 0x10, // out 0x10, al
    ];
    /// A page of its own.
    #[repr(align(4096))]
    struct Page([u8; 4096]);

    let failed = |error: kvm_ioctls::Error| std::io::Error::from_raw_os_error(error.errno());
    let mut page = Box::new(Page([0; 4096]));
    page.0[..PROGRAM.len()].copy_from_slice(PROGRAM);
    let vm = Kvm::new().and_then(|kvm| kvm.create_vm()).map_err(failed)?;
    let memory = kvm_userspace_memory_region {
        slot: 0,
        guest_phys_addr: AT,
        memory_size: page.0.len() as u64,
        userspace_addr: page.0.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the page is aligned, has that length, outlives the machine (which was made after it),
    // and nothing else uses it.
    unsafe { vm.set_user_memory_region(memory) }.map_err(failed)?;
    let mut processor = vm.create_vcpu(0).map_err(failed)?;
    let mut segments = processor.get_sregs().map_err(failed)?;
    (segments.cs.base, segments.cs.selector) = (0, 0);
    processor.set_sregs(&segments).map_err(failed)?;
    let mut registers = processor.get_regs().map_err(failed)?;
    // Of the flags only the one that is always set.
    (registers.rip, registers.rflags) = (AT, 2);
    processor.set_regs(&registers).map_err(failed)?;
    match processor.run().map_err(failed)? {
        VcpuExit::IoOut(0x10, _) => Ok(()),
        other => Err(std::io::Error::other(format!(
            "the guest stopped: {other:?}"
        ))),
    }
}
