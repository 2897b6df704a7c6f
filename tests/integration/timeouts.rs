//! What is too slow is ended, by the timeout that is meant for it and not by another.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Answer, Device, End, Site, V4, connect, receive};

#[test]
fn a_head_has_its_time_from_the_accept_on_however_often_a_byte_of_it_comes() {
    let site = Site::new("timeouts.head = '1s'");
    let relay = site.start();
    let device = Device::echo(V4);
    let mut client = connect(relay.address());
    let mut slow = client.try_clone().unwrap();
    let head = site.request(&device).bytes();
    let began = Instant::now();
    thread::spawn(move || {
        // Fails when the relay has closed, which ends this thread.
        for byte in head {
            if slow.write_all(&[byte]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
    });
    let answer = Answer::read(client.try_clone().unwrap());
    assert_eq!((answer.status, answer.slug().as_deref()), (408, Some("head-timeout")));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(900), "ended after {took:?} already");
    client.shutdown(Shutdown::Both).unwrap();
    let _end = client.read(&mut [0]);
}

#[test]
fn a_silent_device_costs_the_client_the_connect_timeout_and_no_more() {
    let site = Site::new("timeouts.connect = '700ms'");
    let relay = site.start();
    let silent = Device::silent();
    let began = Instant::now();
    let answer = site.ask(&relay, silent.port);
    let took = began.elapsed();
    assert_eq!((answer.status, answer.slug().as_deref()), (504, Some("device-timeout")));
    assert!(took >= Duration::from_millis(650), "gave up after {took:?} already");
    assert!(took < Duration::from_secs(5), "took {took:?}, the default and not what is configured");
}

#[test]
fn many_silent_devices_do_not_delay_one_that_answers() {
    let site = Site::new("timeouts.connect = '20s'");
    let relay = site.start();
    let silent = Device::silent();
    let device = Device::echo(V4);
    let _waiting: Vec<_> = (0..200)
        .map(|_| {
            let mut client = connect(relay.address());
            client
                .write_all(
                    &crate::support::Request::to(crate::support::DEVICE, silent.port)
                        .bearer(&site.token)
                        .bytes(),
                )
                .unwrap();
            client
        })
        .collect();
    let began = Instant::now();
    let answer = site.ask(&relay, device.port());
    assert_eq!(answer.status, 200);
    assert!(began.elapsed() < Duration::from_secs(10), "waited {:?} behind the silent ones", began.elapsed());
}

#[test]
fn a_tunnel_in_which_nothing_moves_is_ended() {
    // The timeouts of stages that are over have no say.
    let site = Site::new("timeouts = { head = '1h', connect = '1h', idle = '500ms' }");
    let relay = site.start();
    let device = Device::listening(V4);
    let mut client = site.request(&device).send(relay.address()).opened();
    let mut device = device.accept();
    let began = Instant::now();
    assert_eq!(receive(&mut client).1, End::Reset, "neither side takes it for a proper end");
    assert!(began.elapsed() >= Duration::from_millis(450), "ended after {:?} already", began.elapsed());
    assert_eq!(receive(&mut device).1, End::Reset);
    assert_eq!(site.audit().wait_for_events(1)[0]["cause"], "idle-timeout");
}

#[test]
fn a_byte_now_and_then_in_either_direction_keeps_a_tunnel_open() {
    for forwarding in ["copy", "splice"] {
        let site = Site::new(&format!("timeouts.idle = '2s'\nengine.forwarding = '{forwarding}'"));
        let relay = site.start();
        let device = Device::listening(V4);
        let mut client = site.request(&device).send(relay.address()).opened();
        let mut device = device.accept();
        // Each direction alone is silent for as long as the timeout, the tunnel never is.
        for _ in 0..2 {
            thread::sleep(Duration::from_millis(1200));
            client.write_all(b"u").unwrap();
            device.read_exact(&mut [0]).unwrap();
            thread::sleep(Duration::from_millis(1200));
            device.write_all(b"d").unwrap();
            client.read_exact(&mut [0]).unwrap();
        }
        assert_eq!(receive(&mut client).1, End::Reset, "{forwarding}: and without one it ends");
    }
}

#[test]
fn a_half_closed_tunnel_in_which_nothing_moves_is_ended_sooner() {
    let site = Site::new("timeouts = { head = '1h', connect = '1h', idle = '1h', half_closed = '500ms' }");
    let relay = site.start();
    let device = Device::listening(V4);
    let mut client = site.request(&device).send(relay.address()).opened();
    let mut device = device.accept();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(receive(&mut device).1, End::Fin);
    assert_eq!(receive(&mut client).1, End::Reset);
    assert_eq!(site.audit().wait_for_events(1)[0]["cause"], "half-closed-timeout");
}

#[test]
fn a_half_closed_tunnel_that_still_delivers_is_left_alone() {
    let site = Site::new("timeouts.half_closed = '1s'");
    let relay = site.start();
    let device = Device::listening(V4);
    let mut client = site.request(&device).send(relay.address()).opened();
    let mut device = device.accept();
    client.shutdown(Shutdown::Write).unwrap();
    for _ in 0..6 {
        thread::sleep(Duration::from_millis(400));
        device.write_all(b"more").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
    }
    drop(device);
    assert_eq!(receive(&mut client).1, End::Fin);
    assert_eq!(site.audit().wait_for_events(1)[0]["cause"], "closed");
}
