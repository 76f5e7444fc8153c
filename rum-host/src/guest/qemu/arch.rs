//! What differs between the processor architectures on which QEMU runs here.

/// A processor architecture that rum can boot: the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit PCs.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Arch {
    /// The architecture with this name in Rust.
    pub fn named(name: &str) -> Option<Self> {
        [Self::X86_64, Self::Aarch64]
            .into_iter()
            .find(|arch| arch.name() == name)
    }

    /// The QEMU that emulates it.
    pub fn program(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86_64",
            Self::Aarch64 => "qemu-system-aarch64",
        }
    }

    /// Its name, as Rust and QEMU call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// Prefix of the machine types to which `machine` resolves, without their version.
    pub fn machine_type(self) -> &'static str {
        match self {
            Self::X86_64 => "pc-q35",
            Self::Aarch64 => "virt",
        }
    }

    /// Whether an image boots by UEFI by default: Arm has nothing else.
    pub fn boots_by_uefi(self) -> bool {
        self == Self::Aarch64
    }

    pub(super) fn machine(self) -> &'static str {
        match self {
            // Without HPET: after a pause, an emulated guest handles every HPET tick that it missed
            // (18 s of outage after a stop of 25 s, 1.6 s without).
            Self::X86_64 => "q35,hpet=off",
            Self::Aarch64 => "virt,gic-version=max",
        }
    }

    /// Linux's name of its first serial port.
    pub(super) fn console(self) -> &'static str {
        match self {
            Self::X86_64 => "ttyS0",
            Self::Aarch64 => "ttyAMA0",
        }
    }
}
