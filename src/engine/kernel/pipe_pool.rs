//! One thread's pipes for splicing.

use std::io;

use super::Conveyor;
use crate::config::EngineConfig;

/// Clean pipes of one thread; made when first wanted, kept until the thread ends.
pub(in crate::engine) struct PipePool<P> {
    clean: Vec<P>,
    out: usize,
    pipes_max: usize,
    pipe_bytes: usize,
}

impl<P: Conveyor> PipePool<P> {
    pub fn new(config: &EngineConfig) -> Self {
        Self { clean: Vec::new(), out: 0, pipes_max: config.pipes, pipe_bytes: config.pipe_bytes }
    }

    /// Sizes new pipes by `config`. Pipes in use keep their size.
    pub fn reconfigure(&mut self, config: &EngineConfig) {
        (self.pipes_max, self.pipe_bytes) = (config.pipes, config.pipe_bytes);
        self.clean.clear();
    }

    /// Takes a clean pipe, or a new one, which `make` makes with about so many bytes. `None` at the bound of the thread,
    /// or where that fails.
    pub fn take(&mut self, make: impl FnOnce(usize) -> io::Result<P>) -> Option<P> {
        let pipe = match self.clean.pop() {
            Some(pipe) => pipe,
            None if self.out < self.pipes_max => make(self.pipe_bytes).ok()?,
            None => return None,
        };
        self.out += 1;
        Some(pipe)
    }

    /// Takes a pipe back. One with bytes in it is closed.
    pub fn put(&mut self, pipe: P) {
        if pipe.held_bytes() > 0 {
            return self.close(pipe);
        }
        self.out -= 1;
        self.clean.push(pipe);
    }

    pub fn close(&mut self, pipe: P) {
        self.out -= 1;
        drop(pipe);
    }

    /// A pipe that was taken goes to another process.
    pub fn leaves(&mut self) {
        self.out -= 1;
    }

    /// A pipe comes from another process, and counts as taken.
    pub fn comes(&mut self) {
        self.out += 1;
    }

    /// Number of pipes that are taken.
    pub fn out(&self) -> usize {
        self.out
    }

    #[cfg(simulation)]
    pub fn clean(&self) -> &[P] {
        &self.clean
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::sys::pipe::Pipe;

    fn pool(pipes: usize) -> PipePool<Pipe> {
        PipePool::new(&EngineConfig { pipes, ..EngineConfig::default() })
    }

    #[test]
    fn the_pool_stops_at_its_bound_and_goes_on_when_a_pipe_comes_back() {
        let mut pool = pool(2);
        let first = pool.take(Pipe::new).unwrap();
        let _second = pool.take(Pipe::new).unwrap();
        assert!(pool.take(Pipe::new).is_none());
        pool.put(first);
        assert!(pool.take(Pipe::new).is_some());
    }

    #[test]
    fn a_dirty_pipe_is_closed_not_pooled() {
        let mut pool = pool(1);
        let mut pipe = pool.take(Pipe::new).unwrap();
        let (inlet, mut source) = UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut source, b"left over").unwrap();
        pipe.fill_from(inlet.as_fd()).unwrap();
        pool.put(pipe);
        assert!(pool.clean.is_empty());
        assert!(pool.take(Pipe::new).is_some_and(|fresh| fresh.held_bytes() == 0));
    }
}
