//! UEFI firmware for a VM: found as libvirt finds it, by the descriptions that distributions
//! install with the firmware (QEMU, docs/interop/firmware.json).
//!
//! Descriptions are read in the order of their file names, and the first that fits is used. One in
//! `/etc/qemu/firmware` overrides one of the same name in `/usr/share/qemu/firmware`, and the
//! user's overrides both; an empty file disables it. A fitting firmware needs nothing that rum's
//! machine lacks (SMM), and boots unsigned systems (no enrolled keys).
//!
//! The code is shared and never written. The variables, in which an installed system keeps its boot
//! entries, belong to the VM: a copy of the template next to its overlay, made together with it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use facet::Facet;

use super::arch::Arch;
use crate::guest::GuestError;

/// An installed firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// What is executed.
    pub code: Flash,
    /// Template of the VM's variables; None: they do not persist.
    pub vars: Option<Flash>,
}

/// The content of a flash chip.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct Flash {
    /// Its file.
    #[facet(rename = "filename")]
    pub file: String,
    /// `raw` or `qcow2`.
    pub format: String,
}

#[derive(Debug, Facet)]
#[facet(rename_all = "kebab-case")]
struct Description {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
    features: Vec<String>,
}

#[derive(Debug, Facet)]
#[facet(rename_all = "kebab-case")]
struct Mapping {
    device: String,
    mode: Option<String>,
    executable: Option<Flash>,
    nvram_template: Option<Flash>,
}

#[derive(Debug, Facet)]
struct Target {
    architecture: String,
    machines: Vec<String>,
}

/// The firmware for a machine of `arch`.
///
/// # Errors
/// None is installed.
pub fn find(arch: Arch) -> Result<Firmware, GuestError> {
    let set = |key| std::env::var_os(key).filter(|value| !value.is_empty());
    let home = set("HOME").map(|home| Path::new(&home).join(".config"));
    let user = set("XDG_CONFIG_HOME").map(PathBuf::from).or(home);
    let system = ["/usr/share", "/etc"].map(PathBuf::from);
    let dirs = system.into_iter().chain(user);
    find_in(dirs.map(|dir| dir.join("qemu/firmware")), arch).ok_or_else(|| {
        GuestError::vm("there is no UEFI firmware for the VM").with_hint(
            "install it: `apt install ovmf` (qemu-efi-aarch64 on aarch64), or `dnf install edk2-ovmf`",
        )
    })
}

/// As [`find`]; later directories override earlier ones.
fn find_in(dirs: impl Iterator<Item = PathBuf>, arch: Arch) -> Option<Firmware> {
    let mut files: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for entry in dirs.filter_map(|dir| fs::read_dir(dir).ok()).flatten() {
        let Ok(entry) = entry else { continue };
        if entry.path().extension().is_some_and(|is| is == "json") {
            files.insert(entry.file_name(), entry.path());
        }
    }
    files.values().find_map(|file| {
        let text = fs::read(file).ok().filter(|text| !text.is_empty())?;
        match facet_json::from_slice::<Description>(&text) {
            Ok(description) => description.firmware(arch),
            Err(error) => {
                tracing::debug!(file = %file.display(), %error, "no description of a firmware");
                None
            }
        }
    })
}

impl Description {
    /// What it describes, if that can be a machine's of `arch`.
    fn firmware(self, arch: Arch) -> Option<Firmware> {
        let runs_on = |target: &Target| {
            let machine = |pattern: &String| pattern.starts_with(arch.machine_type());
            target.architecture == arch.name() && target.machines.iter().any(machine)
        };
        let has = |name: &str| self.features.iter().any(|feature| feature == name);
        let fits = self.interface_types.iter().any(|kind| kind == "uefi")
            && self.mapping.device == "flash"
            && self.targets.iter().any(runs_on)
            && !has("requires-smm")
            && !has("enrolled-keys");
        let (code, vars) = (self.mapping.executable, self.mapping.nvram_template);
        let vars = match self.mapping.mode.as_deref() {
            None | Some("split") => Some(vars?),
            Some("stateless") => None,
            _ => return None,
        };
        let firmware = Firmware { code: code?, vars };
        let mut all = std::iter::once(&firmware.code).chain(&firmware.vars);
        // The format becomes part of QEMU's command line.
        let known = all.all(|flash| ["raw", "qcow2"].contains(&&*flash.format));
        (fits && known).then_some(firmware)
    }
}

/// Gives the VM its own variables in `file`: keeps existing ones, or copies the template if
/// `fresh`, that is, if there is nothing of an earlier boot.
///
/// # Errors
/// The template cannot be read or `file` cannot be written.
pub fn prepare(template: &Flash, file: &Path, fresh: bool) -> Result<(), GuestError> {
    let failed = |path: &Path, error: io::Error| {
        GuestError::vm(format!(
            "cannot copy the firmware's variables: {}: {error}",
            path.display()
        ))
    };
    if !fresh && file.exists() {
        return Ok(());
    }
    let template = Path::new(&template.file);
    let content = fs::read(template).map_err(|error| failed(template, error))?;
    // All or nothing: no firmware can read half of the variables.
    let part = file.with_extension("part");
    let mut create = fs::File::options();
    create.write(true).create(true).truncate(true).mode(0o600);
    let write = || {
        create.open(&part)?.write_all(&content)?;
        fs::rename(&part, file)
    };
    write().map_err(|error| failed(file, error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A description as a distribution writes it.
    fn description(name: &str, features: &str, rest: &str) -> String {
        format!(
            r#"{{"description": "UEFI", "interface-types": ["uefi"], "mapping": {{"device": "flash",
            "executable": {{"filename": "/fw/{name}.code", "format": "raw"}},
            "nvram-template": {{"filename": "/fw/{name}.vars", "format": "qcow2"}}{rest}}},
            "targets": [{{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}}],
            "features": [{features}], "tags": []}}"#
        )
    }

    #[test]
    fn the_first_that_fits_is_taken_and_the_nearer_directory_goes_first() {
        let (far, near) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let found = |arch| {
            let dirs = [far.path(), near.path(), Path::new("/nowhere")];
            find_in(dirs.map(Path::to_path_buf).into_iter(), arch)
        };
        let code = |found: Option<Firmware>| found.map(|found| found.code.file);
        assert_eq!(found(Arch::X86_64), None);
        for (name, text) in [
            ("10-broken.json", "{".to_owned()),
            (
                "20-signed.json",
                description("signed", r#""enrolled-keys""#, ""),
            ),
            (
                "30-smm.json",
                description("smm", r#""secure-boot", "requires-smm""#, ""),
            ),
            (
                "40-one.json",
                description("one", "", r#", "mode": "combined""#),
            ),
            ("60-good.json", description("good", r#""acpi-s3""#, "")),
            ("70-late.json", description("late", "", "")),
            ("00-readme", description("readme", "", "")),
        ] {
            fs::write(far.path().join(name), text).unwrap();
        }
        assert_eq!(code(found(Arch::X86_64)).as_deref(), Some("/fw/good.code"));
        assert_eq!(found(Arch::Aarch64), None);
        let vars = found(Arch::X86_64).unwrap().vars.unwrap();
        assert_eq!((&*vars.file, &*vars.format), ("/fw/good.vars", "qcow2"));

        let mine = near.path().join("60-good.json");
        fs::write(&mine, description("mine", "", r#", "mode": "stateless""#)).unwrap();
        let found_mine = found(Arch::X86_64).unwrap();
        assert_eq!(
            (&*found_mine.code.file, found_mine.vars),
            ("/fw/mine.code", None)
        );
        fs::write(&mine, "").unwrap();
        assert_eq!(code(found(Arch::X86_64)).as_deref(), Some("/fw/late.code"));
    }

    #[test]
    fn variables_stay_until_the_disk_is_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let (template, file) = (dir.path().join("template"), dir.path().join("vars"));
        fs::write(&template, "empty").unwrap();
        let flash = Flash {
            file: template.to_str().unwrap().to_owned(),
            format: "raw".to_owned(),
        };
        let is = || fs::read_to_string(&file).unwrap();
        prepare(&flash, &file, false).unwrap();
        assert_eq!(is(), "empty");
        fs::write(&file, "boot entries").unwrap();
        prepare(&flash, &file, false).unwrap();
        assert_eq!(is(), "boot entries");
        prepare(&flash, &file, true).unwrap();
        assert_eq!(is(), "empty");
        fs::remove_file(&template).unwrap();
        let error = prepare(&flash, &file, true).unwrap_err().to_string();
        assert!(error.contains("template: No such file"), "{error}");
    }
}
