//! `sluicegate sessions` and `status`: what an operator sees of a running relay's sessions, and ends.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{
    DEVICE, DEVICE_V6, Device, Relay, Request, Site, V4, V6, exchange, ipv6_or_skip, root_or_skip,
    tools_or_skip, wait_for,
};
use nix::unistd::{Gid, Group};
use serde_json::Value;

/// A relay with one tunnel per byte count, of which each has sent as many bytes and had them back.
struct Scene {
    site: Site,
    relay: Relay,
    tunnels: Vec<TcpStream>,
    _device: Device,
}

impl Scene {
    fn new(bytes: &[usize]) -> Self {
        let site = Site::new("");
        let relay = site.start();
        let device = Device::echo(V4);
        let tunnels = bytes
            .iter()
            .map(|count| {
                let mut tunnel = site.request(&device).send(relay.address()).opened();
                tunnel.write_all(&vec![7; *count]).unwrap();
                tunnel.read_exact(&mut vec![0; *count]).unwrap();
                // An age is told in whole milliseconds, give or take one; no two shall be the same.
                std::thread::sleep(Duration::from_millis(5));
                tunnel
            })
            .collect();
        Self { site, relay, tunnels, _device: device }
    }

    /// The id of the session of this tunnel.
    fn id_of(&self, tunnel: &TcpStream) -> String {
        let client = tunnel.local_addr().unwrap().to_string();
        let sessions = self.site.cli(&["sessions", "--client", &client]);
        assert_eq!(sessions.as_array().unwrap().len(), 1, "{sessions}");
        sessions[0]["id"].as_str().unwrap().to_owned()
    }

    fn local(&self, line: &str) -> crate::support::HttpAnswer {
        exchange(UnixStream::connect(socket_of(&self.site)).unwrap(), line, "")
    }
}

fn socket_of(site: &Site) -> std::path::PathBuf {
    site.folder().join("state/admin.sock")
}

fn echoes(mut tunnel: &TcpStream) -> bool {
    let mut back = [0; 4];
    tunnel.write_all(b"ping").is_ok() && tunnel.read_exact(&mut back).is_ok() && back == *b"ping"
}

#[test]
fn a_session_is_listed_with_who_what_and_how_much() {
    let scene = Scene::new(&[1000]);
    let sessions = scene.site.cli(&["sessions"]);
    let session = &sessions[0];
    assert_eq!(session["client"], scene.tunnels[0].local_addr().unwrap().to_string());
    assert_eq!((&session["uuid"], &session["state"]), (&DEVICE.into(), &"open".into()));
    assert_eq!((&session["bytes_up"], &session["bytes_down"]), (&1000.into(), &1000.into()));
    assert_eq!((&session["path_up"], &session["path_down"]), (&"copy".into(), &"copy".into()));
    assert_eq!(
        (&session["credential"], &session["grant"]),
        (&scene.site.credential.as_str().into(), &scene.site.grant.into())
    );
    let principals = scene.site.cli(&["principal", "list"]);
    assert_eq!(session["principal"], principals[0]["id"]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    let since = session["since"].as_i64().unwrap();
    assert!((now - 60_000..=now).contains(&since), "{since} at {now}");

    let output = scene.site.command(&["sessions"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("ID ") && text.contains(&format!("{DEVICE}:")), "{text}");
    let token = &scene.site.token;
    assert!(!text.contains(token) && !sessions.to_string().contains(token));
}

#[test]
fn sessions_are_filtered_and_sorted_by_what_was_asked_for() {
    if !ipv6_or_skip("sessions_are_filtered_and_sorted_by_what_was_asked_for") {
        return;
    }
    let scene = Scene::new(&[10, 3000, 200]);
    let device = Device::echo(V6);
    let _other = scene.site.request(&device).send(scene.relay.address()).opened();
    let listed =
        |arguments: &[&str]| scene.site.cli(&[&["sessions"], arguments].concat()).as_array().unwrap().clone();
    let bytes =
        |sessions: &[Value]| sessions.iter().map(|row| row["bytes_up"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(bytes(&listed(&["--device", &DEVICE[..8], "--sort", "bytes"])), [3000, 200, 10]);
    assert_eq!(bytes(&listed(&["--device", DEVICE])), [10, 3000, 200], "the oldest first");
    assert_eq!(listed(&["--device", DEVICE_V6]).len(), 1);
    let principal = listed(&[])[0]["principal"].to_string();
    assert_eq!(listed(&["--principal", &principal]).len(), 4);
    assert_eq!(listed(&["--principal", "424242"]).len(), 0);
    assert_eq!(listed(&["--principal", "alice"]).len(), 4);
    assert!(listed(&[]).iter().all(|session| session["principal_name"] == "alice"));
    // The relay itself reads them once somebody has looked.
    let of_relay = || scene.local("GET /sessions").json()["sessions"][0]["principal_name"] == "alice";
    assert!(wait_for(|| of_relay().then_some(())).is_some());
    assert_eq!(listed(&["--client", "127.0.0.0/8", "--device", DEVICE_V6]).len(), 1);
    assert_eq!(listed(&["--client", "127.0.0.9"]).len(), 0);
    let rates = listed(&["--sort", "rate"]);
    assert!(rates.iter().all(|row| row["rate_up"] == 0), "{rates:?}");
}

#[test]
fn a_thousand_sessions_are_listed_and_the_end_of_one_ends_no_other() {
    let site = Site::new("limits.sessions_per_device = 2000");
    let relay = site.start();
    let device = Device::listening(V4);
    let request = site.request(&device);
    let tunnels: Vec<_> =
        (0..1_000).map(|_| (request.send(relay.address()).opened(), device.accept())).collect();
    let began = Instant::now();
    let sessions = site.cli(&["sessions"]);
    let took = began.elapsed();
    let mut clients: Vec<_> =
        sessions.as_array().unwrap().iter().map(|row| row["client"].to_string()).collect();
    clients.sort_unstable();
    clients.dedup();
    assert_eq!(clients.len(), 1_000);
    assert!(took < crate::support::PATIENCE / 10, "{took:?}");

    let wanted = tunnels[500].0.local_addr().unwrap().to_string();
    let row = sessions.as_array().unwrap().iter().find(|row| row["client"] == wanted.as_str()).unwrap();
    let id = row["id"].as_str().unwrap();
    assert_eq!(site.cli(&["sessions", "kill", id])["ended"], id);
    for (place, (mut client, mut at_device)) in tunnels.into_iter().enumerate() {
        if place == 500 {
            // Both sides are told that this is not all there was.
            assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(at_device.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        } else {
            client.write_all(b"x").unwrap();
            at_device.read_exact(&mut [0]).unwrap();
        }
    }
}

#[test]
fn the_end_of_a_session_is_written_down_with_its_cause_and_who_wanted_it() {
    let scene = Scene::new(&[10]);
    let id = scene.id_of(&scene.tunnels[0]);
    scene.site.cli(&["sessions", "kill", &id]);
    let end = scene.site.audit().wait_for(|event| event["event"] == "session-end");
    assert_eq!((&end["cause"], &end["bytes_up"]), (&"ended-by-admin".into(), &10.into()));
    let command = scene.site.audit().wait_for(|event| event["command"] == "session-end");
    assert_eq!((&command["outcome"], &command["detail"]), (&"done".into(), &format!("session {id}").into()));
    assert_eq!(command["uid"], nix::unistd::geteuid().as_raw());

    let again = scene.site.command(&["sessions", "kill", &id]).output().unwrap();
    let message = String::from_utf8(again.stderr).unwrap();
    assert_eq!(
        (again.status.code(), message.as_str()),
        (Some(1), "sluicegate: no session has this id; `sluicegate sessions` lists them\n")
    );
    let refused = scene.site.audit().wait_for(|event| event["outcome"] == "refused");
    assert!(refused["detail"].as_str().unwrap().contains("no session has this id"), "{refused}");
    assert_eq!(scene.local("POST /sessions/everything/end").status, 400);
    assert_eq!(scene.local(&format!("GET /sessions/{id}/end")).status, 405, "looking ends nothing");
}

#[test]
fn a_client_that_is_still_dialling_can_be_ended_too() {
    let site = Site::new("");
    let relay = site.start();
    let silent = Device::silent();
    let mut client = crate::support::connect(relay.address());
    client.write_all(&Request::to(DEVICE, silent.port).bearer(&site.token).bytes()).unwrap();
    let dialling =
        || site.cli(&["sessions"])[0]["state"].as_str().filter(|state| *state == "dialling").map(drop);
    assert!(wait_for(dialling).is_some());
    let id = site.cli(&["sessions"])[0]["id"].as_str().unwrap().to_owned();
    site.cli(&["sessions", "kill", &id]);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert!(relay.metric_becomes("sluicegate_sessions", |sessions| sessions == 0.0));
}

#[test]
fn status_is_one_screen_of_text_or_figures() {
    let scene = Scene::new(&[100_000]);
    let refused = Request::to(DEVICE, 80).bearer("sg_unknown").send(scene.relay.address());
    assert_eq!(refused.status, 407);
    drop(refused);
    let status = scene.site.cli(&["status"]);
    assert_eq!((&status["readiness"], &status["sessions"]["opened"]), (&"ready".into(), &1.into()));
    assert_eq!(
        (&status["refusals"]["credential-unknown"], &status["bytes"]["up_copied"]),
        (&1.into(), &100_000.into())
    );
    let output = scene.site.command(&["status"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "ready",
        "tunnels   1 opened",
        "1 credential-unknown",
        "guard     holds nothing back",
        "generation 1",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
    assert!(text.lines().count() <= 24 && text.lines().all(|line| line.chars().count() <= 100), "{text}");
}

#[test]
fn the_socket_is_its_owners_alone_unless_a_group_is_named() {
    let name = "the_socket_is_its_owners_alone_unless_a_group_is_named";
    let mut site = Site::new("");
    let relay = site.start();
    let permissions = |site: &Site| {
        let metadata = std::fs::metadata(socket_of(site)).unwrap();
        (metadata.permissions().mode() & 0o777, metadata.gid())
    };
    assert_eq!(permissions(&site).0, 0o600);
    drop(relay);
    site.configure("admin.socket_group = 'nobody-has-made-this-group'");
    let (code, message) = site.start_in_vain().unwrap();
    assert!(
        code == Some(1) && message.contains("there is no group `nobody-has-made-this-group`"),
        "{message}"
    );
    if !root_or_skip(name) {
        return;
    }
    let group = Group::from_gid(Gid::from_raw(4)).unwrap().unwrap();
    site.configure(&format!("admin.socket_group = '{}'", group.name));
    let _relay = site.start();
    assert_eq!(permissions(&site), (0o660, group.gid.as_raw()));

    // Somebody else in the group may ask, and somebody else who is not may not.
    for folder in [site.folder(), &site.folder().join("state")] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let status_of_member = |gid: u32| {
        let socket = socket_of(&site);
        let mut curl = Command::new("setpriv");
        curl.args([
            "--reuid=65534",
            &format!("--regid={gid}"),
            "--clear-groups",
            "curl",
            "-s",
            "--unix-socket",
        ]);
        curl.arg(socket).args(["-o", "/dev/null", "-w", "%{http_code}", "http://relay/sessions"]);
        String::from_utf8(curl.output().unwrap().stdout).unwrap()
    };
    assert_eq!(status_of_member(group.gid.as_raw()), "200");
    assert_eq!(status_of_member(65534), "000");
}

/// A program that runs another one without the system calls of systemd's set `@privileged`, as the shipped unit does.
fn without_privileged_calls(folder: &std::path::Path) -> std::path::PathBuf {
    let mut names = vec!["@privileged".to_owned()];
    let mut place = 0;
    while place < names.len() {
        if names[place].starts_with('@') {
            let set =
                Command::new("systemd-analyze").args(["syscall-filter", &names[place]]).output().unwrap();
            let set = String::from_utf8(set.stdout).unwrap();
            let members =
                set.lines().skip(1).map(str::trim).filter(|line| !line.starts_with('#') && !line.is_empty());
            names.extend(members.map(str::to_owned));
        }
        place += 1;
    }
    let denied: String = names
        .iter()
        .filter(|name| !name.starts_with('@'))
        .map(|name| format!("#ifdef __NR_{name}\n    DENY(__NR_{name})\n#endif\n"))
        .collect();
    assert!(denied.contains("__NR_fchownat"), "{denied}");
    let source = format!("{WRAPPER_HEAD}{denied}{WRAPPER_TAIL}");
    let (file, program) = (folder.join("wrapper.c"), folder.join("wrapper"));
    std::fs::write(&file, source).unwrap();
    assert!(Command::new("cc").arg("-o").args([&program, &file]).status().unwrap().success());
    program
}

const WRAPPER_HEAD: &str = "#include <errno.h>\n#include <linux/filter.h>\n#include <linux/seccomp.h>\n\
    #include <stddef.h>\n#include <sys/prctl.h>\n#include <sys/syscall.h>\n#include <unistd.h>\n\
    #define DENY(n) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, n, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),\n\
    int main(int argc, char **argv) {\n  struct sock_filter filter[] = {\n\
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),\n";

const WRAPPER_TAIL: &str = "BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };\n\
    struct sock_fprog program = { sizeof filter / sizeof *filter, filter };\n\
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return 2;\n\
    execvp(argv[1], argv + 1);\n  return 3;\n}\n";

#[test]
fn the_socket_is_opened_to_the_services_own_group_where_the_unit_forbids_chown() {
    let name = "the_socket_is_opened_to_the_services_own_group_where_the_unit_forbids_chown";
    if !tools_or_skip(name, &["cc", "systemd-analyze"]) || !root_or_skip(name) {
        return;
    }
    let mut site = Site::new("");
    let wrapper = without_privileged_calls(site.folder());
    let own = Group::from_gid(nix::unistd::getegid()).unwrap().unwrap();
    let other = Group::from_gid(Gid::from_raw(4)).unwrap().unwrap();
    for (group, mode) in [(&own, 0o660), (&other, 0o600)] {
        site.configure(&format!("admin.socket_group = '{}'", group.name));
        let relay = site.start_through(&[&wrapper]);
        let metadata = std::fs::metadata(socket_of(&site)).unwrap();
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.gid()), (mode, own.gid.as_raw()));
        let is_told = relay.log().contains("is for its owner alone: its group cannot be set to");
        assert_eq!(is_told, group.gid != own.gid, "{}", relay.log());
        assert!(site.command(&["status"]).output().unwrap().status.success());
    }
}

#[test]
fn a_command_without_a_relay_says_what_to_look_at() {
    let site = Site::new("");
    for arguments in [vec!["status"], vec!["sessions"], vec!["sessions", "kill", "1"]] {
        let output = site.command(&arguments).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            message.contains("no relay can be asked at") && message.contains("is it running"),
            "{message}"
        );
    }
}

#[test]
fn tunnels_echo_while_their_sessions_are_listed_all_the_time() {
    let scene = Scene::new(&[10; 8]);
    for _ in 0..20 {
        assert_eq!(scene.local("GET /sessions").json()["sessions"].as_array().unwrap().len(), 8);
        assert!(scene.tunnels.iter().all(echoes));
    }
}

#[test]
fn each_listener_counts_the_clients_that_came_to_it() {
    let site = Site::new("listen = [{ address = '127.0.0.1:0' }, { address = '127.0.0.2:0' }]");
    let relay = site.start();
    let device = Device::echo(V4);
    let [one, two] = [0, 1].map(|place| relay.addresses()[place]);
    let _tunnels = [one, one, two].map(|listener| site.request(&device).send(listener).opened());
    let ended = site.request(&device).send(two).opened();
    drop(ended);
    let refused = Request::to(DEVICE, 1).bearer("unknown").send(two);
    assert_eq!(refused.status, 407);
    drop(refused);
    let counts = || {
        let status = site.cli(&["status"]);
        let listeners = status["node"]["listeners"].as_array().unwrap().clone();
        let figures =
            |each: &Value| ["sessions", "opened", "refused"].map(|name| each[name].as_u64().unwrap());
        listeners.iter().map(figures).collect::<Vec<_>>()
    };
    let expected = vec![[2, 2, 0], [1, 2, 1]];
    let is_so = || (counts() == expected).then_some(());
    assert!(wait_for(is_so).is_some(), "{:?}", counts());
    let screen = String::from_utf8(site.command(&["status"]).output().unwrap().stdout).unwrap();
    let line = format!("{two}: sessions 1, tunnels 2, refused 1");
    assert!(screen.contains(&line), "{screen}");
}
