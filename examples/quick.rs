use rynd::engine::*; use std::time::Instant;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let t0 = Instant::now();
    let mut e = Engine::load(a[1].as_ref(), &EngineConfig { threads: Some(a[2].parse().unwrap()), context: Some(8192), ..Default::default() }).unwrap();
    println!("load {:?}, {:.3} GB/token", t0.elapsed(), e.plan().bytes_per_token() as f64 / 1e9);
    let ids: Vec<u32> = (0..a[3].parse::<u32>().unwrap()).map(|i| 1000 + i * 7).collect();
    let mut s = Session::new();
    for _ in 0..2 { s.clear(&mut e);
    let t = Instant::now(); s.sync(&mut e, &ids).unwrap(); let d = t.elapsed().as_secs_f64();
    println!("pp{} {:.1} t/s", ids.len(), ids.len() as f64 / d);
    let n: usize = a[4].parse().unwrap();
    let mut tl = ids.clone(); let t = Instant::now();
    for i in 0..n { tl.push(5 + i as u32); s.sync(&mut e, &tl).unwrap(); }
    let d = t.elapsed().as_secs_f64();
    println!("tg{} {:.2} t/s {:.1} GB/s", n, n as f64 / d, n as f64 / d * e.plan().bytes_per_token() as f64 / 1e9);
    }
}
