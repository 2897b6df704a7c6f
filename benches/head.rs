//! What parsing a head costs: the one that the balena CLI sends, and one of a client that says more.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sluicegate::wire::parse_head;

fn head(criterion: &mut Criterion) {
    let suffixes = ["balena", "vpn", "resin"].map(String::from);
    let target = "0123456789abcdef0123456789abcdef.balena:22222";
    let credentials = "Proxy-Authorization: Basic dXNlcjowMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc4OWFiY2RlZg==";
    let heads = [
        ("balena", format!("CONNECT {target} HTTP/1.0\r\n{credentials}\r\n\r\n")),
        (
            "curl",
            format!(
                "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{credentials}\r\n\
                 User-Agent: curl/7.88.1\r\nProxy-Connection: Keep-Alive\r\n\r\n"
            ),
        ),
    ];
    let mut group = criterion.benchmark_group("head");
    for (name, head) in &heads {
        group.throughput(Throughput::Bytes(head.len() as u64));
        group.bench_function(*name, |bencher| {
            bencher.iter(|| black_box(parse_head(black_box(head.as_bytes()), &suffixes)));
        });
    }
    group.finish();
}

criterion_group!(benches, head);
criterion_main!(benches);
