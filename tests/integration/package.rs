//! The Debian package, installed into a root of its own: this machine's files under a layer that takes all
//! writes, in namespaces without other processes or networks.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use crate::support::{MadeOnce, root_or_skip, tools_or_skip};

const TOOLS: [&str; 4] = ["dpkg-deb", "dpkg-shlibdeps", "unshare", "systemd-sysusers"];

/// Every file and folder that `packaging/build-deb` reads, besides the binary.
const PACKAGED: [&str; 8] =
    ["CHANGELOG.md", "README.md", "SECURITY.md", "docs", "monitoring", "packaging", "systemd", "tuning"];

const PACKAGE_FILE: &str = "sluicegate.deb";

const SYMBOLS_FILE: &str = "sluicegate-dbgsym.deb";

/// The package of the binary under test, built once for all tests.
static PACKAGE: LazyLock<MadeOnce> = LazyLock::new(|| {
    MadeOnce::new("package", &state_of_what_is_packaged(), |folder| {
        let [package, symbols] = build_in(folder, &[]);
        std::fs::rename(package, folder.join(PACKAGE_FILE)).unwrap();
        std::fs::rename(symbols, folder.join(SYMBOLS_FILE)).unwrap();
    })
});

/// Builds the package and that of its symbols, by a shell that runs `before` first.
fn build_in(folder: &Path, before: &[&str]) -> [PathBuf; 2] {
    let script = [before, &["exec \"$@\""]].concat().join("; ");
    let mut build = Command::new("bash");
    build.args(["-c", &script, "bash"]).arg(root().join("packaging/build-deb"));
    build.arg(crate::support::BINARY).arg(folder);
    // Packed well it takes five times as long.
    let output = build.env("DPKG_DEB_COMPRESSOR_LEVEL", "0").output().unwrap();
    crate::support::assert_done(&output);
    let built = String::from_utf8(output.stdout).unwrap();
    let built: Vec<PathBuf> = built.lines().map(PathBuf::from).collect();
    built.try_into().expect("two packages")
}

/// A hash that changes when a file that `packaging/build-deb` reads is changed, added or removed.
fn state_of_what_is_packaged() -> String {
    let mut files = vec![PathBuf::from(crate::support::BINARY)];
    for source in PACKAGED {
        add_files(&root().join(source), &mut files);
    }
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        let metadata = file.metadata().unwrap();
        let changed_at = (metadata.mtime(), metadata.mtime_nsec());
        (file, changed_at, metadata.len(), metadata.mode()).hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

fn add_files(path: &Path, files: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            add_files(&entry.unwrap().path(), files);
        }
    } else {
        files.push(path.to_owned());
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs `script` in a fresh root, as root, with the package at `$deb`. Ends with what it ended with; the layer
/// that took the writes is gone then. `changed` lists what differs from this machine now.
fn in_a_fresh_root(script: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("layer")).unwrap();
    let inside = format!(
        r#"
        set -e
        changed() {{ (cd /layer && find . -mindepth 1 ! -type d | sed 's|^\.||' | sort); }}
        ip link set lo up
        deb=/package.deb
        {script}
        "#
    );
    let outside = format!(
        r#"
        set -e
        cd "{folder}"
        mount -t tmpfs layer layer
        mkdir layer/upper layer/work layer/root
        mount -t overlay fresh -o lowerdir=/,upperdir=layer/upper,workdir=layer/work layer/root
        cd layer/root
        touch package.deb; mount --bind "{package}" package.deb
        mkdir -p layer; mount --bind ../upper layer
        mount -t proc proc proc; mount --rbind /dev dev; mount --rbind /sys sys
        mount -t tmpfs run run; mount -t tmpfs tmp tmp
        exec chroot . env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive \
            bash -c "$INSIDE"
        "#,
        folder = folder.path().display(),
        package = PACKAGE.folder().join(PACKAGE_FILE).display(),
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--net", "--fork", "bash", "-c", &outside]).env("INSIDE", inside);
    command.output().unwrap()
}

fn can_run(name: &str) -> bool {
    root_or_skip(name) && tools_or_skip(name, &TOOLS)
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn an_installed_package_shows_a_whole_relay() {
    if !can_run("an_installed_package_shows_a_whole_relay") {
        return;
    }
    let output = in_a_fresh_root(
        r#"
        dpkg -i $deb
        sluicegate demo --once
        # Whether this machine limits the configuration is not the package's business.
        sluicegate doctor --json >/tmp/doctor.json || test $? = 1
        grep -q '"item": "open files"' /tmp/doctor.json
        # What its README says comes next.
        runuser -u sluicegate -- sluicegate store init
        runuser -u sluicegate -- sluicegate check
        "#,
    );
    crate::support::assert_done(&output);
    assert!(stdout(&output).contains("/etc/sluicegate/sluicegate.toml: fine"), "{}", stdout(&output));
}

#[test]
fn an_installation_activates_nothing() {
    if !can_run("an_installation_activates_nothing") {
        return;
    }
    let output = in_a_fresh_root("dpkg -i $deb; echo INSTALLED; changed");
    crate::support::assert_done(&output);
    let message = stdout(&output);
    let files: Vec<&str> = message.split("INSTALLED\n").nth(1).unwrap().lines().collect();
    assert!(files.contains(&"/usr/bin/sluicegate"), "{files:?}");
    assert!(files.contains(&"/usr/share/sluicegate/tuning/sysctl.d/sluicegate-latency.conf"));
    let active =
        ["/etc/sysctl.d", "/usr/lib/sysctl.d", "/etc/tuned", "/usr/lib/tuned", "/etc/security", ".wants/"];
    for file in files {
        assert!(!active.iter().any(|folder| file.contains(folder)), "{file} is active");
    }
}

#[test]
fn a_removed_package_keeps_the_configuration_and_a_purged_one_nothing() {
    if !can_run("a_removed_package_keeps_the_configuration_and_a_purged_one_nothing") {
        return;
    }
    let output = in_a_fresh_root(
        r#"
        dpkg -i $deb
        runuser -u sluicegate -- sluicegate store init
        install -D /dev/null /var/log/sluicegate/audit.jsonl-20260101
        echo '# mine' >>/etc/sluicegate/sluicegate.toml
        dpkg -r sluicegate
        test ! -e /usr/bin/sluicegate
        grep -q '# mine' /etc/sluicegate/sluicegate.toml
        test -e /var/lib/sluicegate/sluicegate.db
        dpkg -P sluicegate
        echo PURGED
        changed
        test ! -e /var/lib/sluicegate-canary
        grep sluicegate /etc/passwd /etc/group /etc/shadow /etc/gshadow || true
        "#,
    );
    crate::support::assert_done(&output);
    let message = stdout(&output);
    let left = message.split("PURGED\n").nth(1).unwrap();
    let left: Vec<&str> = left.lines().filter(|file| file.contains("sluicegate")).collect();
    assert_eq!(left, [""; 0]);
}

#[test]
fn the_package_is_as_dpkg_and_its_reader_expect() {
    if !can_run("the_package_is_as_dpkg_and_its_reader_expect") {
        return;
    }
    let output = in_a_fresh_root(
        r#"
        dpkg-deb --field $deb Package Version Architecture Maintainer Installed-Size Depends Description
        echo CONTENTS
        dpkg-deb --contents $deb
        echo VERIFIED
        dpkg -i $deb >/dev/null
        dpkg --verify sluicegate
        "#,
    );
    crate::support::assert_done(&output);
    let message = stdout(&output);
    let (fields, rest) = message.split_once("CONTENTS\n").unwrap();
    let (contents, differences) = rest.split_once("VERIFIED\n").unwrap();
    for field in
        ["Package: sluicegate\n", "Maintainer: ", "Installed-Size: ", "Depends: libc6 (>= ", "Description: "]
    {
        assert!(fields.contains(field), "{field} in {fields}");
    }
    assert_eq!(differences, "", "what is installed is not what was packaged");
    for line in contents.lines() {
        let [mode, owner, ..] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert_eq!(owner, "root/root", "{line}");
        let (group, others) = (&mode[4..7], &mode[7..10]);
        assert!(!group.contains('w') && !others.contains('w'), "others may write {line}");
    }
    for unit in
        ["sluicegate.service", "sluicegate.socket", "sluicegate-canary.service", "sluicegate-canary.timer"]
    {
        assert!(contents.contains(&format!("/usr/lib/systemd/system/{unit}\n")), "{unit}");
    }
    for file in ["README.md", "docs/audit.md", "docs/guard.md", "docs/reference.toml", "copyright"] {
        assert!(contents.contains(&format!("/usr/share/doc/sluicegate/{file}\n")), "{file}");
    }
}

#[test]
fn the_package_has_the_version_of_the_program_and_a_changelog_of_it() {
    if !can_run("the_package_has_the_version_of_the_program_and_a_changelog_of_it") {
        return;
    }
    let output = in_a_fresh_root(
        "dpkg-deb --field $deb Version; dpkg -i $deb >/dev/null; zcat /usr/share/doc/sluicegate/changelog.gz; \
         sluicegate --version; zcat /usr/share/man/man1/sluicegate-drain.1.gz",
    );
    crate::support::assert_done(&output);
    let (message, version) = (stdout(&output), sluicegate::VERSION);
    for part in [
        format!("{version}\n"),
        format!("sluicegate ({version}) unstable; "),
        format!("sluicegate {version}\n"),
        "sluicegate drain \\-\\-for 10m\n".to_owned(),
    ] {
        assert!(message.contains(&part), "{part} in {message}");
    }
    // The version of a package that `make deb` builds has the commit, and dpkg takes a later one for newer.
    let version = Command::new(root().join("packaging/version")).output().unwrap();
    let version = stdout(&version);
    let (release, commit) = version.trim().split_once('+').expect("a day and a commit");
    assert_eq!(release, env!("CARGO_PKG_VERSION"));
    let (day, commit) = commit.split_once('.').unwrap();
    assert!(day.len() == 8 && day.bytes().all(|byte| byte.is_ascii_digit()), "{version}");
    assert!(commit.len() >= 12, "{version}");
    let is_older = |one: &str, other: &str| {
        Command::new("dpkg").args(["--compare-versions", one, "lt", other]).status().unwrap().success()
    };
    assert!(is_older("0.1.0+20261130.f00000000000", "0.1.0+20261201.000000000000"));
    assert!(is_older(version.trim(), "9.0.0"));
}

/// Debian's own check of packages finds nothing that is not explained in packaging/deb/lintian-overrides.
#[test]
fn lintian_finds_nothing() {
    if !tools_or_skip("lintian_finds_nothing", &["lintian", "dpkg-deb", "dpkg-shlibdeps"]) {
        return;
    }
    let folder = PACKAGE.folder();
    let mut lintian = Command::new("lintian");
    lintian.args(["--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0"]);
    let output = lintian.arg(folder.join(PACKAGE_FILE)).arg(folder.join(SYMBOLS_FILE)).output().unwrap();
    assert!(output.status.success(), "{}{}", stdout(&output), String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_package_that_is_built_again_is_the_same_to_the_byte() {
    if !can_run("a_package_that_is_built_again_is_the_same_to_the_byte") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let again = build_in(folder.path(), &["umask 077", "export TZ=Asia/Tokyo LC_ALL=C HOME=/nonexistent"]);
    for (again, first) in again.iter().zip([PACKAGE_FILE, SYMBOLS_FILE]) {
        let first = std::fs::read(PACKAGE.folder().join(first)).unwrap();
        assert!(std::fs::read(again).unwrap() == first, "{} differs", again.display());
    }
}

#[test]
fn the_program_has_no_symbols_and_the_package_of_symbols_has_those_of_it() {
    let name = "the_program_has_no_symbols_and_the_package_of_symbols_has_those_of_it";
    if !can_run(name) || !tools_or_skip(name, &["readelf"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let unpack = |package: &str, into: &str| {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(PACKAGE.folder().join(package)).arg(folder.path().join(into));
        crate::support::assert_done(&unpack.output().unwrap());
    };
    unpack(PACKAGE_FILE, "program");
    unpack(SYMBOLS_FILE, "symbols");
    let readelf = |option: &str, file: &Path| {
        let output = Command::new("readelf").args([option, "--wide"]).arg(file).output().unwrap();
        stdout(&output)
    };
    let program = folder.path().join("program/usr/bin/sluicegate");
    let notes = readelf("--notes", &program);
    let id = notes.split("Build ID: ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let (first, rest) = id.split_at(2);
    let symbols = folder.path().join(format!("symbols/usr/lib/debug/.build-id/{first}/{rest}.debug"));
    assert!(readelf("--notes", &symbols).contains(&id));
    let sections = |file: &Path| readelf("--sections", file);
    for section in [".symtab", ".debug_line", ".debug_info"] {
        assert!(!sections(&program).contains(section), "{section}");
    }
    assert!(sections(&symbols).contains(".symtab") && sections(&symbols).contains(".debug_line"));
}

#[test]
fn the_bill_of_materials_names_what_is_built_in_and_no_tests() {
    if !tools_or_skip("the_bill_of_materials_names_what_is_built_in_and_no_tests", &["python3"]) {
        return;
    }
    let mut sbom = Command::new(root().join("packaging/sbom"));
    let output = sbom.arg("1.2.3+4").env("SOURCE_DATE_EPOCH", "1800000000").output().unwrap();
    crate::support::assert_done(&output);
    let bom: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&bom["bomFormat"], &bom["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    assert_eq!(bom["metadata"]["timestamp"], "2027-01-15T08:00:00Z");
    assert_eq!(bom["metadata"]["component"]["version"], "1.2.3+4");
    let components = bom["components"].as_array().unwrap();
    let named = |name: &str| components.iter().filter(|each| each["name"] == name).count();
    assert_eq!([named("rustls"), named("io-uring"), named("sqlite"), named("proptest")], [1, 1, 1, 0]);
    for component in components {
        assert!(component["licenses"][0].is_object(), "{component}");
        assert!(
            component["hashes"][0]["content"].is_string() || component["name"] == "sqlite",
            "{component}"
        );
    }
    let known: Vec<&serde_json::Value> = components.iter().map(|each| &each["bom-ref"]).collect();
    for edge in bom["dependencies"].as_array().unwrap() {
        assert!(edge["dependsOn"].as_array().unwrap().iter().all(|to| known.contains(&to)), "{edge}");
    }
}

#[test]
fn to_build_the_package_installs_nothing() {
    let output = Command::new("make").args(["--dry-run", "deb"]).current_dir(root()).output().unwrap();
    crate::support::assert_done(&output);
    let commands = stdout(&output);
    assert!(commands.contains("packaging/build-deb") && commands.contains("packaging/sbom"), "{commands}");
    assert!(!commands.contains(".ci/"), "{commands}");
}

#[test]
fn logrotate_takes_the_audit_log_away_and_tells_the_relay() {
    let name = "logrotate_takes_the_audit_log_away_and_tells_the_relay";
    if !can_run(name) || !tools_or_skip(name, &["logrotate"]) {
        return;
    }
    let output = in_a_fresh_root(
        r#"
        dpkg -i $deb >/dev/null
        install -d -m 750 -o sluicegate -g sluicegate /var/log/sluicegate
        echo '{}' >/var/log/sluicegate/audit.jsonl
        # No service manager runs here.
        printf '#!/bin/sh\necho "$@" >>/tmp/message\n' >/usr/local/sbin/systemctl
        chmod +x /usr/local/sbin/systemctl
        PATH=/usr/local/sbin:$PATH logrotate --force --state /tmp/state /etc/logrotate.d/sluicegate
        cat /tmp/message
        ls /var/log/sluicegate
        "#,
    );
    crate::support::assert_done(&output);
    let message = stdout(&output);
    assert!(message.contains("kill --signal=HUP --kill-whom=main sluicegate.service\n"), "{message}");
    let files: Vec<&str> = message.lines().filter(|line| line.starts_with("audit.jsonl")).collect();
    assert!(matches!(files[..], [rotated] if rotated.starts_with("audit.jsonl-")), "{message}");
}

#[test]
fn every_command_has_a_manual_page_and_is_completed() {
    if !can_run("every_command_has_a_manual_page_and_is_completed") {
        return;
    }
    let help = Command::new(crate::support::BINARY).arg("help").output().unwrap();
    let help = stdout(&help);
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let commands: Vec<&str> = commands.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.contains(&"doctor") && !commands.contains(&"generate"), "{commands:?}");
    let output = in_a_fresh_root(
        "dpkg -i $deb >/dev/null; ls /usr/share/man/man1; ls /usr/share/man/man5; ls -d /run/openvpn-sluicegate; cat /usr/share/bash-completion/completions/sluicegate \
         /usr/share/zsh/vendor-completions/_sluicegate /usr/share/fish/vendor_completions.d/sluicegate.fish",
    );
    crate::support::assert_done(&output);
    let message = stdout(&output);
    assert!(
        message.contains("sluicegate.toml.5.gz\n") && message.contains("/run/openvpn-sluicegate\n"),
        "{message}"
    );
    for command in commands.into_iter().filter(|command| *command != "help") {
        assert!(message.contains(&format!("sluicegate-{command}.1.gz\n")), "{command}");
        assert!(message.contains(&format!("sluicegate,{command})")), "bash: {command}");
        assert!(message.contains(&format!("({command})\n")), "zsh: {command}");
        assert!(message.contains(&format!("-a \"{command}\"")), "fish: {command}");
    }
}
