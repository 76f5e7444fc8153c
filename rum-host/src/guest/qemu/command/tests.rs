use super::super::firmware::Flash;
use super::super::spec::Accel;
use super::*;

fn files(dir: &str) -> Files {
    let file = |name: &str| Path::new(dir).join(name);
    Files {
        qmp: file("qmp.sock"),
        console: file("console.sock"),
        console_log: file("console.log"),
        vhost: file("vhost.sock"),
        vsock: file("vm.vsock"),
        initramfs: file("initramfs"),
        uefi_vars: file("uefi-vars"),
        overlay: file("overlay.qcow2"),
        seed: file("seed.img"),
    }
}

fn spec(boot: Boot) -> Spec {
    Spec {
        boot,
        cpus: 2,
        memory_mib: 512,
        disk_mib: None,
        uefi: None,
        accel: Accel::Auto,
        args: Vec::new(),
        user_data: None,
        ssh_key: None,
    }
}

fn kernel(append: &str) -> Spec {
    spec(Boot::Kernel {
        kernel: "/boot/vmlinuz".into(),
        initrd: None,
        append: append.to_owned(),
    })
}

/// An option and its value to a line.
fn shown(arch: Arch, engine: Engine, device: Device, spec: &Spec, files: &Files) -> String {
    text(&Machine {
        name: "dev",
        arch,
        spec,
        engine,
        sandbox: engine == Engine::Kvm,
        device,
        firmware: None,
        files,
    })
}

fn text(machine: &Machine<'_>) -> String {
    let mut text = String::new();
    for arg in qemu(machine) {
        let arg = arg.to_string_lossy();
        let separator = if arg.starts_with('-') { "\n" } else { " " };
        text += separator;
        text += &arg;
    }
    text.trim().to_owned()
}

#[test]
fn command_lines() {
    let vhost = Device::Vhost { cid: 7 };
    let (x86, arm) = (Arch::X86_64, Arch::Aarch64);
    let run = files("/run/rum/dev");
    let image = spec(Boot::Image("/srv/debian.qcow2".into()));
    let text = shown(x86, Engine::Kvm, vhost, &image, &run);
    insta::assert_snapshot!("image-kvm", text);
    let quiet = kernel("quiet panic=5");
    let text = shown(x86, Engine::Tcg, Device::User, &quiet, &run);
    insta::assert_snapshot!("kernel-tcg", text);
    let text = shown(arm, Engine::Kvm, vhost, &kernel(""), &run);
    insta::assert_snapshot!("kernel-aarch64", text);
    let device = vsock_device(Path::new("/usr/bin/vhost-device-vsock"), &run);
    let device: Vec<_> = device.iter().map(|arg| arg.to_string_lossy()).collect();
    insta::assert_snapshot!("device", device.join("\n"));
}

#[test]
fn firmware_is_read_only_and_its_variables_are_the_machines() {
    let flash = |file: &str, format: &str| Flash {
        file: file.to_owned(),
        format: format.to_owned(),
    };
    let firmware = Firmware {
        code: flash("/fw/a,b", "raw"),
        vars: Some(flash("/fw/vars", "qcow2")),
    };
    let (spec, run) = (spec(Boot::Image("/srv/debian.qcow2".into())), files("/run"));
    let text = |firmware: &Firmware| {
        text(&Machine {
            name: "dev",
            arch: Arch::X86_64,
            spec: &spec,
            engine: Engine::Tcg,
            sandbox: false,
            device: Device::User,
            firmware: Some(firmware),
            files: &run,
        })
    };
    insta::assert_snapshot!("image-uefi", text(&firmware));
    let stateless = Firmware {
        vars: None,
        ..firmware
    };
    assert!(!text(&stateless).contains("vars"));
}

#[test]
fn what_the_user_adds_comes_last_and_may_replace_the_network() {
    let mut spec = spec(Boot::Image("/srv/debian.qcow2".into()));
    let run = files("/run/rum/dev");
    let text = |spec: &Spec| shown(Arch::X86_64, Engine::Tcg, Device::User, spec, &run);
    assert!(text(&spec).contains("-netdev user,id=net"));
    spec.args = vec!["-nic".into(), "none".into()];
    assert!(!text(&spec).contains("-netdev"));
    assert!(text(&spec).ends_with("\n-nic none"));
}

#[test]
fn no_machine_opens_a_port_of_the_host() {
    for spec in [kernel(""), spec(Boot::Image("/a".into()))] {
        for device in [Device::User, Device::Vhost { cid: 3 }] {
            let text = shown(Arch::X86_64, Engine::Kvm, device, &spec, &files("/r"));
            for word in ["hostfwd", "tcp:", "port=", "-vnc", "-gdb"] {
                assert!(!text.contains(word), "{word} in {text}");
            }
        }
    }
}

#[test]
fn a_comma_in_a_path_is_not_an_option() {
    let files = files("/run/a,id=b");
    let text = shown(Arch::X86_64, Engine::Tcg, Device::User, &kernel(""), &files);
    assert!(text.contains("path=/run/a,,id=b/qmp.sock"), "{text}");
    assert!(text.contains("logfile=/run/a,,id=b/console.log"), "{text}");
}
