use std::hint::black_box;
use std::time::Instant;
use burn::tensor::{Device, Tensor, TensorData, activation};
use burn_preference::*;
use burn_preference::math;

fn vals(n: usize, step: f32) -> Tensor<1> {
    let values: Vec<f32> = (0..n).map(|i| -1.0 - step * (i % 97) as f32).collect();
    Tensor::from_floats(values.as_slice(), &Device::default())
}
fn leaf(n: usize, s: f32) -> Tensor<1> { vals(n, s).autodiff().require_grad() }
fn seq(sum: Tensor<1>) -> SequenceLogProbs {
    let lengths = Tensor::from_data(TensorData::from(vec![7; sum.dims()[0]].as_slice()), &Device::default());
    SequenceLogProbs::new(sum, lengths).unwrap()
}
fn med(mut f: impl FnMut() -> f64) -> f64 {
    for _ in 0..200 { f(); }
    let mut t: Vec<f64> = (0..1001).map(|_| f()).collect();
    t.sort_by(f64::total_cmp);
    1e6 * t[t.len() / 3]
}
fn stage<I, O>(mk: impl Fn() -> I, f: impl Fn(I) -> O) -> f64 {
    med(|| { let i = mk(); let s = Instant::now(); let o = black_box(f(i)); let t = s.elapsed().as_secs_f64(); drop(o); t })
}
fn main() {
    let n: usize = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(8);
    let p = |name: &str, t: f64| println!("{name:50} {t:9.2} µs");
    p("empty", stage(|| (), |()| ()));
    p("fwd: w - l (tracked)", stage(|| (leaf(n, 0.3), leaf(n, 0.4)), |(a, b)| a - b));
    p("fwd: w - const", stage(|| (leaf(n, 0.3), vals(n, 0.4)), |(a, b)| a - b));
    p("fwd: const - const", stage(|| (vals(n, 0.3), vals(n, 0.4)), |(a, b)| a - b));
    p("fwd: x * s tracked", stage(|| leaf(n, 0.3), |a| a * 0.1));
    p("fwd: x * s const", stage(|| vals(n, 0.3), |a| a * 0.1));
    p("fwd: -x tracked", stage(|| leaf(n, 0.3), |a| -a));
    p("fwd: softplus tracked", stage(|| leaf(n, 0.3), math::softplus));
    p("fwd: softplus const", stage(|| vals(n, 0.3), math::softplus));
    p("fwd: exp const", stage(|| vals(n, 0.3), |x| x.exp()));
    p("fwd: log1p const", stage(|| vals(n, 0.3).exp(), |x| x.log1p()));
    p("fwd: sigmoid const", stage(|| vals(n, 0.3), activation::sigmoid));
    p("fwd: greater_elem", stage(|| vals(n, 0.3), |x| x.greater_elem(40.0)));
    p("fwd: mask_fill const", stage(|| { let x = vals(n, 0.3); (x.clone(), x.greater_elem(40.0)) }, |(x, m)| x.mask_fill(m, 1.0)));
    p("fwd: mask_where const", stage(|| { let x = vals(n, 0.3); (x.clone(), vals(n, 0.2), x.greater_elem(40.0)) }, |(x, y, m)| x.mask_where(m, y)));
    p("fwd: sum_dim tracked", stage(|| leaf(n, 0.3), |a| a.sum_dim(0)));
    p("fwd: mean tracked", stage(|| leaf(n, 0.3), |a| a.mean()));
    p("clone tracked", stage(|| leaf(n, 0.3), |a| { let b = a.clone(); (a, b) }));
    p("without_autodiff", stage(|| leaf(n, 0.3), |a| a.without_autodiff()));
    p("cast same", stage(|| vals(n, 0.3), |a| a.cast(burn::tensor::DType::F32)));
    let pair = || PolicyPair::new(seq(leaf(n, 0.3)), seq(leaf(n, 0.4))).unwrap();
    let refp = PolicyPair::new(seq(vals(n, 0.31)), seq(vals(n, 0.37))).unwrap();
    p("Pair::new", stage(|| (seq(leaf(n, 0.3)), seq(leaf(n, 0.4))), |(a, b)| PolicyPair::new(a, b)));
    p("relative_to", stage(|| (pair(), refp.clone()), |(a, b)| a.relative_to(b)));
    let rp = || pair().relative_to(refp.clone()).unwrap();
    p("log_ratios", stage(rp, |b| b.log_ratios()));
    p("rewards (x beta)", stage(|| rp().log_ratios(), |b| b * 0.1));
    p("margin", stage(|| rp().log_ratios(), |b| b.margin()));
    let dpo = DpoLossConfig::new().init();
    p("dpo forward", stage(rp, |b| dpo.forward(b)));
    p("mean", stage(|| dpo.forward(rp()), |b| b.mean()));
    p("dpo backward", stage(|| dpo.forward(rp()).mean(), |b| b.backward()));
    p("floor fwd", stage(|| (leaf(n, 0.3), leaf(n, 0.4)), |(w, l)| activation::sigmoid(w - l).mean()));
    p("floor bwd", stage(|| activation::sigmoid(leaf(n, 0.3) - leaf(n, 0.4)).mean(), |x| x.backward()));
    for k in [1, 2, 4, 8] {
        p(&format!("{k} mul nodes fwd"), stage(|| leaf(n, 0.3), |a| { let mut a = a; for _ in 0..k { a = a * 0.9; } a }));
        p(&format!("{k} mul nodes bwd"), stage(|| { let mut a = leaf(n, 0.3); for _ in 0..k { a = a * 0.9; } a }, |a| a.backward()));
    }
}
