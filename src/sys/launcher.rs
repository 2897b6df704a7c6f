//! A process beside the relay that starts programs for it, since the relay itself may not.
//!
//! It is started before the relay gives up what it does not need, and is not confined: what it starts shall not be
//! either. It starts nothing but a list of programs that it gets at once, each with its arguments. It ends with the relay.
//!
//! Unsafe because descriptors that a service manager passed to the relay have to be closed by their numbers.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR2};

use super::packets::PacketSocket;

/// A program with all that it is called with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProgramCall {
    pub file: OsString,
    /// Its own name for itself; `None` is `file`.
    pub name: Option<OsString>,
    pub arguments: Vec<OsString>,
    /// Variables that it gets besides those of the relay.
    pub set: Vec<(String, String)>,
    /// Variables of the relay that it does not get.
    pub unset: Vec<String>,
}

/// The relay's end of the launcher. Dropped, the launcher ends.
pub struct Launcher {
    /// Requests go one at a time.
    socket: Mutex<Option<PacketSocket>>,
    programs: Vec<ProgramCall>,
    process: Child,
}

/// A program that runs.
#[derive(Debug)]
pub enum StartedProgram {
    Child(Child),
    /// A child of the launcher. The launcher reaps it.
    OfLauncher {
        pid: u32,
        conversation: PacketSocket,
    },
}

/// What the relay sends: first the list, then requests by the places in it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Request {
    Programs(Vec<ProgramCall>),
    /// Starts a program. Comes with two descriptors: the conversation about it, and the program's standard input.
    Start(usize),
    /// Runs a program. Comes with one descriptor: the conversation, in which the output comes back as a file.
    Output(usize),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Started(u32),
    /// The program has ended. Comes with one descriptor, of the output.
    Done,
    Killed,
    /// A program that was started has ended by itself.
    Ended,
    Failed {
        text: String,
        errno: Option<i32>,
    },
}

static LAUNCHER: OnceLock<Launcher> = OnceLock::new();

/// The launcher of this process, once it is in use.
pub fn in_use() -> Option<&'static Launcher> {
    LAUNCHER.get()
}

impl Launcher {
    /// Starts the launcher: this program again, with `argument`, which has to call [`serve`].
    pub fn start(argument: &str, programs: Vec<ProgramCall>) -> io::Result<Self> {
        let (ours, theirs) = PacketSocket::pair()?;
        ours.limit_send(ANSWER_TIME_MAX)?;
        let mut command = Command::new(THIS_PROGRAM);
        // Whoever looks for relays by their command lines finds none here.
        command.arg0("sluicegate").arg(argument).stdin(Stdio::from(theirs));
        let process = command.spawn()?;
        ours.send(&encoded(&Request::Programs(programs.clone()))?, &[])?;
        Ok(Self { socket: Mutex::new(Some(ours)), programs, process })
    }

    /// Has this process start programs by it from now on.
    pub fn put_in_use(self) {
        let _there_is_one = LAUNCHER.set(self);
    }

    /// Starts a program of the list. `input` becomes its standard input.
    pub fn start_program(&self, program: &ProgramCall, input: OwnedFd) -> io::Result<StartedProgram> {
        let request = Request::Start(self.place_of(program)?);
        let conversation = self.request(&request, Some(input))?;
        match answer(&conversation, ANSWER_TIME_MAX)? {
            (Answer::Started(pid), _) => Ok(StartedProgram::OfLauncher { pid, conversation }),
            (other, _) => Err(other.into_error()),
        }
    }

    /// Runs a program of the list, for at most `patience`, and returns its output.
    pub fn output_of(&self, program: &ProgramCall, patience: Duration) -> io::Result<File> {
        let request = Request::Output(self.place_of(program)?);
        let conversation = self.request(&request, None)?;
        match answer(&conversation, patience + ANSWER_TIME_MAX)? {
            (Answer::Done, mut descriptors) if !descriptors.is_empty() => Ok(descriptors.remove(0).into()),
            (other, _) => Err(other.into_error()),
        }
    }

    fn place_of(&self, program: &ProgramCall) -> io::Result<usize> {
        let place = self.programs.iter().position(|each| each == program);
        place.ok_or_else(|| io::Error::new(io::ErrorKind::PermissionDenied, "the launcher does not know it"))
    }

    fn request(&self, request: &Request, input: Option<OwnedFd>) -> io::Result<PacketSocket> {
        let (ours, theirs) = PacketSocket::pair()?;
        let descriptors: Vec<_> =
            std::iter::once(theirs.as_fd()).chain(input.as_ref().map(AsFd::as_fd)).collect();
        let socket = self.socket.lock();
        let sent = socket.as_ref().map(|socket| socket.send(&encoded(request)?, &descriptors));
        match sent {
            Some(Ok(())) => Ok(ours),
            Some(Err(error)) if error.raw_os_error() == Some(libc::EPIPE) => Err(gone()),
            Some(Err(error)) => Err(error),
            None => Err(gone()),
        }
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        *self.socket.lock() = None;
        let _gone_already = self.process.wait();
    }
}

impl StartedProgram {
    pub fn id(&self) -> u32 {
        match self {
            Self::Child(child) => child.id(),
            Self::OfLauncher { pid, .. } => *pid,
        }
    }

    /// Ends it and waits until it is gone.
    pub fn kill(&mut self) {
        match self {
            Self::Child(child) => {
                let _gone_already = child.kill();
                let _gone_already = child.wait();
            }
            Self::OfLauncher { conversation, .. } => {
                let _launcher_gone = conversation.send(KILL, &[]);
                let _launcher_gone = answer(conversation, ANSWER_TIME_MAX);
            }
        }
    }

    /// Tests whether it is known to have ended.
    pub fn has_ended(&mut self) -> bool {
        match self {
            Self::Child(child) => matches!(child.try_wait(), Ok(Some(_))),
            Self::OfLauncher { conversation, .. } => {
                let has_more = conversation.wait(None, false, Duration::ZERO).unwrap_or(false);
                // Without the launcher nobody knows.
                has_more && matches!(answer(conversation, ANSWER_TIME_MAX), Ok((Answer::Ended, _)))
            }
        }
    }

    /// Leaves it to itself, and reaps it should it end before this process.
    pub fn leave(self) {
        let Self::Child(mut child) = self else { return };
        let waits = std::thread::Builder::new().name("successor".to_owned());
        // Without the thread it stays a zombie as long as this process lives.
        let _zombie = waits.spawn(move || child.wait());
    }
}

/// The launcher's process: serves the relay that is at its standard input, until that relay has ended.
pub fn serve() -> io::Result<()> {
    close_inherited();
    let _never_stopped_by_signals = ignore_signals()?;
    let socket = PacketSocket::new(io::stdin().as_fd().try_clone_to_owned()?);
    let mut room = vec![0; REQUEST_BYTES_MAX];
    let mut programs = None;
    loop {
        let (len, descriptors) = socket.receive(&mut room)?;
        if len == 0 {
            return Ok(());
        }
        let request = serde_json::from_slice(&room[..len]).map_err(io::Error::other)?;
        match request {
            Request::Programs(list) if programs.is_none() => programs = Some(list),
            // What was agreed on before the relay spoke with anybody else stays.
            Request::Programs(_) => {}
            Request::Start(place) | Request::Output(place) => {
                let program = programs.as_ref().and_then(|list: &Vec<ProgramCall>| list.get(place)).cloned();
                let Some(program) = program else { continue };
                let has_output = matches!(request, Request::Output(_));
                let serving = std::thread::Builder::new().name("program".to_owned());
                let _relay_sees_the_end_of_the_conversation =
                    serving.spawn(move || converse(&program, has_output, descriptors));
            }
        }
    }
}

fn converse(program: &ProgramCall, has_output: bool, descriptors: Vec<OwnedFd>) {
    let mut descriptors = descriptors.into_iter();
    let Some(conversation) = descriptors.next().map(PacketSocket::new) else { return };
    let served = if has_output {
        output(program, &conversation)
    } else {
        descriptors.next().map_or(Ok(()), |input| run(program, input, &conversation))
    };
    if let Err(error) = served {
        let failed = Answer::Failed { text: error.to_string(), errno: error.raw_os_error() };
        let _relay_gone = send_answer(&conversation, &failed, None);
    }
}

/// Runs a program until it ends or the relay wants it to.
fn run(program: &ProgramCall, input: OwnedFd, conversation: &PacketSocket) -> io::Result<()> {
    let mut command = program.command();
    let mut child = command.stdin(Stdio::from(input)).spawn()?;
    // It holds the program's end of the connection with the relay.
    drop(command);
    send_answer(conversation, &Answer::Started(child.id()), None)?;
    while !conversation.wait(None, false, CHILD_LOOK)? {
        if child.try_wait()?.is_some() {
            send_answer(conversation, &Answer::Ended, None)?;
            break;
        }
    }
    let (len, _) = conversation.receive(&mut [0; KILL.len()])?;
    if len > 0 {
        child.kill()?;
    }
    child.wait()?;
    if len > 0 { send_answer(conversation, &Answer::Killed, None) } else { Ok(()) }
}

fn output(program: &ProgramCall, conversation: &PacketSocket) -> io::Result<()> {
    // This is a file, since a full pipe would have to be read with a deadline.
    let output = tempfile::tempfile()?;
    let mut command = program.command();
    command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(output.try_clone()?);
    let status = wait_within(command.spawn()?, OUTPUT_TIME_MAX)?;
    if !status.success() {
        return Err(io::Error::other(format!("{status}; does the relay have the capability for it?")));
    }
    send_answer(conversation, &Answer::Done, Some(&output))
}

/// Waits for the end of `child`, for at most `patience`; then ends it.
pub fn wait_within(mut child: Child, patience: Duration) -> io::Result<ExitStatus> {
    let give_up_at = Instant::now() + patience;
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(status),
            None if Instant::now() < give_up_at => std::thread::sleep(CHILD_LOOK),
            None => {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::other(format!("no end within {} s", patience.as_secs())));
            }
        }
    }
}

impl ProgramCall {
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.file);
        self.name.iter().for_each(|name| _ = command.arg0(name));
        command.args(&self.arguments).envs(self.set.iter().map(|(name, value)| (name, value)));
        self.unset.iter().for_each(|name| _ = command.env_remove(name));
        command
    }
}

impl Answer {
    fn into_error(self) -> io::Error {
        match self {
            Self::Failed { errno: Some(errno), .. } => io::Error::from_raw_os_error(errno),
            Self::Failed { text, errno: None } => io::Error::other(text),
            Self::Started(_) | Self::Done | Self::Killed | Self::Ended => {
                io::Error::other("the launcher is confused")
            }
        }
    }
}

fn encoded(message: &impl Serialize) -> io::Result<Vec<u8>> {
    serde_json::to_vec(message).map_err(io::Error::other)
}

fn send_answer(conversation: &PacketSocket, answer: &Answer, output: Option<&File>) -> io::Result<()> {
    let descriptors: Vec<_> = output.iter().map(AsFd::as_fd).collect();
    conversation.send(&encoded(answer)?, &descriptors)
}

fn answer(conversation: &PacketSocket, patience: Duration) -> io::Result<(Answer, Vec<OwnedFd>)> {
    conversation.limit_receive(patience)?;
    let mut room = [0; ANSWER_BYTES_MAX];
    let (len, descriptors) = conversation.receive(&mut room)?;
    if len == 0 {
        return Err(gone());
    }
    Ok((serde_json::from_slice(&room[..len]).map_err(io::Error::other)?, descriptors))
}

fn gone() -> io::Error {
    io::Error::other("the process that starts programs for the relay is gone; restart the relay")
}

/// Closes what a service manager passed to the relay: sockets of its listeners, which the relay has copies of.
fn close_inherited() {
    // SAFETY: this process has just begun, has one thread, and owns no descriptor from 3 on.
    let _none_there = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
}

/// Lets the signals that end, or upgrade, all processes of a service or a terminal pass. Programs that are started get
/// them as usual.
fn ignore_signals() -> io::Result<Arc<AtomicBool>> {
    let came = Arc::<AtomicBool>::default();
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR2] {
        signal_hook::flag::register(signal, Arc::clone(&came))?;
    }
    Ok(came)
}

/// The program of this process as it was started, whatever is at its path now.
const THIS_PROGRAM: &str = "/proc/self/exe";

const KILL: &[u8] = b"kill";

/// Bytes of a list of programs: paths and arguments of the relay's command line.
const REQUEST_BYTES_MAX: usize = 128 * 1024;

const ANSWER_BYTES_MAX: usize = 4096;

/// Time that the launcher has for an answer. It starts a program in some milliseconds.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// Longest run of a program whose output is wanted.
const OUTPUT_TIME_MAX: Duration = Duration::from_secs(5);

/// Time between two looks whether a child has ended.
const CHILD_LOOK: Duration = Duration::from_millis(5);
