//! Which configs and inputs the files hold: a new objective is a row of `OBJECTIVES`, and its formula
//! an arm of `tests/suite/formulas.rs`.

use std::collections::BTreeMap;

use burn_preference::config::ObjectiveConfig;
use burn_preference::needs::Needs;
use serde_json::{Value, json};

use super::{
    Inputs, LEARNED, Seeded, VERSION, chosen_inputs, evaluate, flat, gradient, number, numbers,
    rows,
};

/// An objective: its name in a file, its formula in words, and its cases: the kind of batch, fields
/// that are not the default, and columns that it reads.
type Row = (&'static str, &'static str, &'static [Spec]);
type Spec = (&'static str, &'static str, &'static [&'static str]);

const NOISY: &str = r#"{"label_noise": {"conservative": 0.1}}"#;

#[rustfmt::skip]
const OBJECTIVES: &[Row] = &[
    ("dpo", "loss = noise(h), h = r_w - r_l, r = beta*g(rho) or beta*g(rho)/length; with a margin noise(h - margin); with a win probability p*noise(h) + (1 - p)*noise(-h)", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"beta": 1.0}"#, &[]),
        ("pairs", NOISY, &[]),
        ("pairs", r#"{"label_noise": {"robust": 0.1}, "beta": 0.5}"#, &[]),
        ("pairs", r#"{"divergence": "forward_kl"}"#, &[]),
        ("pairs", r#"{"divergence": "jensen_shannon"}"#, &[]),
        ("pairs", r#"{"divergence": {"alpha": 0.5}}"#, &[]),
        ("pairs", r#"{"divergence": "chi_squared"}"#, &[]),
        ("pairs", r#"{"normalization": "mean", "beta": 5.0}"#, &[]),
        ("pairs", "{}", &["margin"]),
        ("pairs", "{}", &["win_probability"]),
    ]),
    ("ipo", "loss = (r_w - r_l - 1/(2*tau))^2, r = g(rho)/length or g(rho); reward = tau*r", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"normalization": "sum"}"#, &[]),
        ("pairs", r#"{"tau": 0.5, "divergence": "jensen_shannon"}"#, &[]),
    ]),
    ("hinge", "loss = max(0, 1 - h), h = r_w - r_l, r = beta*g(rho) or beta*g(rho)/length", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"beta": 0.5, "normalization": "mean"}"#, &[]),
        ("pairs", r#"{"divergence": "forward_kl"}"#, &[]),
    ]),
    ("gpo", "loss = f(h), h = beta*(rho_w - rho_l), f = e^-h, max(0, 1 - h)^2 or sigmoid(-h)^2", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"link": "squared_hinge"}"#, &[]),
        ("pairs", r#"{"link": "savage", "beta": 0.5}"#, &[]),
    ]),
    ("discopop", "loss = (1 - sigmoid(h/t))*(-ln sigmoid(h)) + sigmoid(h/t)*e^-h, h = beta*(g(rho_w) - g(rho_l))", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"temperature": 1.0, "beta": 0.5}"#, &[]),
    ]),
    ("exo_pair", "loss = sigmoid(h)*(ln sigmoid(h) - ln(1 - e)) + sigmoid(-h)*(ln sigmoid(-h) - ln e), h = beta*(g(rho_w) - g(rho_l))", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"label_smoothing": 0.1, "beta": 0.5}"#, &[]),
    ]),
    ("nca", "loss = -ln sigmoid(r_w) - ln sigmoid(-r_w)/2 - ln sigmoid(-r_l)/2, r = beta*rho", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"beta": 0.01}"#, &[]),
    ]),
    ("bco", "pairs: loss = -ln sigmoid(beta*rho_w - delta) - ln sigmoid(delta - beta*rho_l), delta = 0 where there is none; completions: -ln sigmoid(+-(beta*rho - delta)), + of a desirable one; reward = beta*rho", &[
        ("pairs", "{}", &[]),
        ("pairs", "{}", &["delta"]),
        ("completions", "{}", &["desirable", "delta"]),
    ]),
    ("sppo", "loss = (rho_w - (P - 1/2)/beta)^2 + (rho_l + (P - 1/2)/beta)^2, P = 1 where there is no win probability; reward = beta*rho", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"beta": 0.1}"#, &[]),
        ("pairs", r#"{"beta": 0.1}"#, &["win_probability"]),
    ]),
    ("apo_zero", "pairs: loss = 1 - sigmoid(beta*rho_w) + sigmoid(beta*rho_l); completions: sigmoid(-+beta*rho), - of a desirable one; reward = beta*rho", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"beta": 0.5}"#, &[]),
        ("completions", "{}", &["desirable"]),
    ]),
    ("apo_down", "loss = sigmoid(beta*rho_w) + 1 - sigmoid(beta*(rho_w - rho_l)); reward = beta*rho", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"beta": 0.5}"#, &[]),
    ]),
    ("dpop", "loss = -ln sigmoid(beta*(rho_w - rho_l - lambda*max(0, -rho_w))); reward = beta*rho", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"penalty": 5.0}"#, &[]),
    ]),
    ("rdpo", "loss = -ln sigmoid(beta*(rho_w - rho_l) + alpha*(length_w - length_l)); reward = beta*rho", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"length_cost": 0.1, "beta": 0.5}"#, &[]),
    ]),
    ("cal_dpo", "loss = -ln sigmoid(rho_w - rho_l) + w*((rho_w - 1/(2*beta))^2 + (rho_l + 1/(2*beta))^2); reward = beta*rho", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"calibration_weight": 0.5, "beta": 0.5}"#, &[]),
    ]),
    ("aot", "losses of ranks, not of pairs: noise(beta*(a_i - b_i)), paired: a = sort(l_w - l_l), b = sort(l0_w - l0_l); otherwise a = sort(rho_w), b = sort(rho_l); reward = beta*rho", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"paired": false}"#, &[]),
        ("pairs", r#"{"label_noise": {"conservative": 0.1}, "beta": 0.5}"#, &[]),
    ]),
    ("dpo_shift", "loss = -ln sigmoid(beta*(rho_w - lambda*rho_l)); reward = beta*rho", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"rejected_share": 0.25, "beta": 0.5}"#, &[]),
    ]),
    ("hdpo", "loss = -ln sigmoid(r_w - r_l), r = beta*(alpha*l - l0)", &[
        ("pairs", r#"{"entropy_weight": 0.9}"#, &[]),
        ("pairs", r#"{"entropy_weight": 1.1, "beta": 0.5}"#, &[]),
    ]),
    ("chipo", "loss = -ln sigmoid(clip(h, -2R, 2R)), h = r_w - r_l, r = beta*(e^rho - 1 + rho)", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"reward_bound": 0.25}"#, &[]),
    ]),
    ("beta_dpo", "loss = -ln sigmoid(b*(rho_w - rho_l)), b = max(beta*(1 + a*(mean of rho_w - rho_l over the batch - mean_margin)), 0.001) without gradient; reward = beta*rho", &[
        ("pairs", "{}", &["mean_margin"]),
        ("pairs", r#"{"sensitivity": 0.1, "beta": 0.5}"#, &["mean_margin"]),
    ]),
    ("tdpo", "loss = -ln sigmoid(beta*(rho_w - rho_l - alpha*(K_l - sg K_w))), K = the sum over tokens of KL(reference || policy); sg: no gradient; reward = beta*rho", &[
        ("pairs", "{}", &["chosen.kl", "rejected.kl"]),
        ("pairs", r#"{"kl_weight": 1.0, "beta": 0.5}"#, &["chosen.kl", "rejected.kl"]),
    ]),
    ("rpo", "d = eta*(s_w - s_l), h = beta*(rho_w - rho_l); loss = KL(Ber sigmoid(d) || Ber sigmoid(h)) (backward), KL(Ber sigmoid(h) || Ber sigmoid(d)) (forward) or (h - d)^2; reward = beta*rho", &[
        ("pairs", "{}", &["chosen.score", "rejected.score"]),
        ("pairs", r#"{"distance": "forward_kl", "score_scale": 2.0}"#, &["chosen.score", "rejected.score"]),
        ("pairs", r#"{"distance": "squared", "beta": 0.5}"#, &["chosen.score", "rejected.score"]),
    ]),
    ("rebel", "loss = (rho_w - rho_l - eta*(s_w - s_l))^2, or ((rho_w - rho_l)/eta - (s_w - s_l))^2 in units of the score; reward = rho", &[
        ("pairs", "{}", &["chosen.score", "rejected.score"]),
        ("pairs", r#"{"unit": "score", "score_scale": 4.0}"#, &["chosen.score", "rejected.score"]),
    ]),
    ("rao_kupper", "P(win) = sigmoid(h - ln nu), P(tie) = (nu^2 - 1)*sigmoid(h - ln nu)*sigmoid(-h - ln nu), h = beta*(rho_w - rho_l); loss = -ln P(what happened); reward = beta*rho", &[
        ("pairs", "{}", &["tied"]),
        ("pairs", r#"{"tie_factor": 1.5, "beta": 0.5}"#, &["tied"]),
    ]),
    ("davidson", "P(win) = 1/(1 + e^-h + 2*nu*e^(-h/2)), P(tie) = 2*nu*e^(-h/2)*P(win), h = beta*(rho_w - rho_l); loss = -ln P(what happened); reward = beta*rho", &[
        ("pairs", "{}", &["tied"]),
        ("pairs", r#"{"tie_factor": 0.5, "beta": 0.5}"#, &["tied"]),
    ]),
    ("simpo", "loss = noise(r_w - r_l - gamma), r = beta*l/length", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"beta": 2.5, "target_margin": 0.5, "label_noise": {"conservative": 0.1}}"#, &[]),
    ]),
    ("cpo", "loss = noise(beta*(l_w - l_l)) + alpha*NLL, of the chosen completion or of `gold`; reward = beta*l", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"nll_normalization": "token"}"#, &[]),
        ("pairs", NOISY, &[]),
        ("pairs", r#"{"sft_weight": 0.0}"#, &[]),
        ("pairs", "{}", &["gold"]),
    ]),
    ("alpha_po", "loss = noise(r_w - r_l - gamma), r = beta*(1 - e^(-alpha*l/length))/alpha", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"alpha": -0.5}"#, &[]),
        ("pairs", r#"{"alpha": 0.0, "label_noise": {"robust": 0.1}}"#, &[]),
    ]),
    ("orpo", "loss = NLL - lambda*ln sigmoid(od_w - od_l), od = m - ln(1 - e^m), m = l/length; the NLL is of the chosen completion or of `gold`; reward = lambda*m", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"odds_ratio_weight": 1.0, "nll_normalization": "token"}"#, &[]),
        ("pairs", "{}", &["gold"]),
    ]),
    ("slic_hf", "loss = max(0, delta - l_w + l_l) - lambda*l_w; reward = l", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"sft_weight": 0.0, "target_margin": 2.0}"#, &[]),
    ]),
    ("simper", "loss = -e^(l_w/length_w) + e^(l_l/length_l); reward = e^(l/length)", &[
        ("pairs", "{}", &[]),
    ]),
    ("asft", "loss = -m_w + lambda*(-ln sigmoid(od_w) - ln sigmoid(-od_l)), od = m - ln(1 - e^m), m = l/length; reward = lambda*m", &[
        ("pairs", "{}", &[]),
        ("pairs", r#"{"alignment_weight": 0.5}"#, &[]),
    ]),
    ("tpo", "loss = noise(r_w - r_l - gamma) + alpha*NLL of `gold`, r = beta*l or beta*l/length", &[
        ("pairs", "{}", &["gold"]),
        ("pairs", r#"{"normalization": "mean", "beta": 2.0, "target_margin": 0.5}"#, &["gold"]),
        ("pairs", r#"{"nll_normalization": "token", "beta": 0.1, "label_noise": {"conservative": 0.1}}"#, &["gold"]),
    ]),
    ("sft", "loss = -L*examples/tokens (token), -L/length (sequence) or -L (sum), L = the sum of weight*ln pi over tokens; with token_weighting probability the weight is times pi, without gradient; tokens/examples is `tokens_per_example` where it is given, and of the batch otherwise; reward = L", &[
        ("demonstrations", "{}", &[]),
        ("demonstrations", r#"{"normalization": "sequence"}"#, &[]),
        ("demonstrations", r#"{"normalization": "sum"}"#, &["weight"]),
        ("demonstrations", r#"{"token_weighting": "probability"}"#, &[]),
        ("demonstrations", "{}", &["tokens_per_example"]),
    ]),
    ("grpo", "loss = the sum over tokens of -min(w*A, clip(w)*A) + beta*KL, over tokens per example of the batch (token), length (sequence) or a constant; w = e^(ln pi - ln mu) of a token, e^(mean) of a sequence or e^(sum) of a completion; clip: to [1 - clip_low, 1 + clip_high]; two_sided: w is at most its bound in the first term; weight: -clip(sg w)*A*ln pi; KL: e^d - d - 1, d = ln pi0 - ln pi (k3), times w (weighted_k3); A: `rewards` of this file", &[
        ("samples", "{}", &[]),
        ("samples", r#"{"clip_high": 0.28}"#, &["tokens_per_example"]),
        ("samples", r#"{"beta": 0.04, "kl": "k3", "normalization": "sequence"}"#, &["reference"]),
        ("samples", r#"{"beta": 0.04, "kl": "weighted_k3"}"#, &["reference"]),
        ("samples", r#"{"advantage": "centered", "normalization": {"constant": 8.0}}"#, &[]),
        ("samples", r#"{"level": "sequence", "normalization": "sequence", "clip_low": 0.0003, "clip_high": 0.0004}"#, &[]),
        ("samples", r#"{"clip": "weight", "clip_low": 1.0, "clip_high": 4.0}"#, &[]),
        ("samples", r#"{"clip": {"two_sided": 1.5}, "advantage": {"normalized_by_all": 0.0001}}"#, &[]),
        ("samples", r#"{"advantage": "leave_one_out", "level": "completion", "normalization": "sequence"}"#, &[]),
    ]),
    ("kto", "desirable: loss = lambda_D*(1 - sigmoid(beta*(rho - z0))); undesirable: lambda_U*(1 - sigmoid(beta*(z0 - rho))); no gradient through z0; reward = beta*rho", &[
        ("completions", "{}", &["desirable", "z0"]),
        ("completions", r#"{"desirable_weight": 1.5, "undesirable_weight": 0.5, "beta": 0.5}"#, &["desirable", "z0"]),
    ]),
    ("npo", "loss = -(2/beta)*ln sigmoid(-beta*rho); reward = beta*rho", &[
        ("completions", "{}", &[]),
        ("completions", r#"{"beta": 1.0}"#, &[]),
    ]),
    ("simnpo", "loss = -(2/beta)*ln sigmoid(-beta*l/length - gamma); reward = beta*l/length", &[
        ("completions", "{}", &[]),
        ("completions", r#"{"beta": 1.0, "target_margin": 0.5}"#, &[]),
    ]),
    ("dro", "loss = (s - V - tau*rho)^2/2; V learns; reward = tau*rho", &[
        ("completions", "{}", &["score", "value"]),
        ("completions", r#"{"tau": 0.1}"#, &["score", "value"]),
    ]),
    ("astar_po", "loss = (beta*rho - (s - V))^2; V does not learn; reward = beta*rho", &[
        ("completions", "{}", &["score", "value"]),
        ("completions", r#"{"beta": 0.5}"#, &["score", "value"]),
    ]),
    ("qrpo", "loss = (s - beta*ln Z - beta*rho)^2, Z = beta*(e^(1/beta) - 1); reward = beta*rho", &[
        ("completions", "{}", &["score"]),
        ("completions", r#"{"beta": 0.5}"#, &["score"]),
    ]),
    ("plackett_luce", "loss = -sum_k ln(e^q_k / (e^q_k + sum of e^q_j over s_j < s_k)), q = beta*rho: equal scores do not compete", &[
        ("lists", "{}", &[]),
        ("lists", r#"{"beta": 1.0}"#, &[]),
    ]),
    ("sdpo", "loss = ln(1 + sum of e^(q_l - q_w) over s_l < s_w), w the best; the mean where several are; q = beta*rho", &[
        ("lists", "{}", &[]),
        ("lists", r#"{"beta": 0.1}"#, &[]),
    ]),
    ("lipo", "loss = sum over s_i > s_j of |2^s_i - 2^s_j|*|1/ln(1 + rank_i) - 1/ln(1 + rank_j)|*ln(1 + e^(q_j - q_i)), q = beta*rho, ranks of q, 1 for the highest, without gradient; of equal q the mean over their orders", &[
        ("lists", "{}", &[]),
        ("lists", r#"{"beta": 0.5}"#, &[]),
    ]),
    ("info_nca", "loss = -sum_i softmax(s/alpha)_i*ln softmax(q)_i, q = beta*rho", &[
        ("lists", "{}", &[]),
        ("lists", r#"{"score_temperature": 0.5, "beta": 1.0}"#, &[]),
    ]),
    ("nca_list", "loss = -sum_i (softmax(s/alpha)_i*ln sigmoid(q_i) + ln sigmoid(-q_i)/K), q = beta*rho", &[
        ("lists", "{}", &[]),
        ("lists", r#"{"score_temperature": 0.5, "beta": 1.0}"#, &[]),
    ]),
    ("exo_list", "loss = KL(softmax(q) || softmax(s/beta_r)), q = beta*rho", &[
        ("lists", "{}", &[]),
        ("lists", r#"{"score_temperature": 0.5, "beta": 1.0}"#, &[]),
    ]),
    ("rrhf", "loss = sum over s_i < s_j of max(0, q_i - q_j) + w*NLL(best)/length, q = l/length^kappa: no reference", &[
        ("lists", "{}", &[]),
        ("lists", r#"{"length_penalty": 0.5, "sft_weight": 0.0}"#, &[]),
    ]),
    ("pro", "loss = sum_k (ln(e^(q_k*T_k) + sum of e^(q_i*(s_k - s_i)) over s_i < s_k) - q_k*T_k) + w*NLL(best)/length, q = l/length, T_k = max(s_k - s_i): no reference", &[
        ("lists", "{}", &[]),
        ("lists", r#"{"sft_weight": 0.0}"#, &[]),
    ]),
    ("bradley_terry", "loss = noise(r_w - r_l) + lambda*(r_w + r_l)^2; with a margin noise(r_w - r_l - margin); with a win probability as dpo", &[
        ("reward_pairs", "{}", &[]),
        ("reward_pairs", r#"{"centering_weight": 0.01}"#, &["margin"]),
        ("reward_pairs", NOISY, &["win_probability"]),
    ]),
    ("bradley_terry_ties", "loss = -ln P(what happened) + lambda*(r_w + r_l)^2, P as of rao_kupper or davidson, h = r_w - r_l", &[
        ("reward_pairs", "{}", &["tied"]),
        ("reward_pairs", r#"{"tie_model": {"davidson": 1.0}, "centering_weight": 0.01}"#, &["tied"]),
    ]),
    ("reward_ranking", "loss = as of plackett_luce, q = r, + lambda*(2*mean r)^2", &[
        ("reward_lists", "{}", &[]),
        ("reward_lists", r#"{"centering_weight": 0.01}"#, &[]),
    ]),
    ("mixture", "loss = the sum of weight*loss of the parts; the rewards are those of the first part", &[
        ("pairs", r#"{"parts": [{"weight": 0.8, "objective": {"loss": "dpo"}}, {"weight": 0.2, "objective": {"loss": "bco"}}]}"#, &[]),
    ]),
    ("with_sft", "loss = that of the objective + weight*NLL of the chosen completion; its rewards", &[
        ("pairs", r#"{"weight": 1.0, "objective": {"loss": "dpo"}}"#, &[]),
        ("pairs", r#"{"weight": 0.2, "normalization": "token", "objective": {"loss": "simpo"}}"#, &[]),
    ]),
];

/// Sequences of these lengths, hundredths of nats: the same ones for a seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> i64 {
        // Knuth's MMIX.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        i64::try_from((self.0 >> 33) % bound).unwrap()
    }

    /// Log-probabilities, and those of another model, at most `apart` hundredths from them.
    fn sequences(&mut self, lengths: &[usize], apart: u64) -> [Value; 2] {
        let mut two = [Vec::new(), Vec::new()];
        for &length in lengths {
            let first: Vec<i64> = (0..length).map(|_| -1 - self.below(300)).collect();
            let apart =
                |x: &i64| (x + self.below(2 * apart + 1) - i64::try_from(apart).unwrap()).min(-1);
            let second: Vec<i64> = first.iter().map(apart).collect();
            for (all, row) in two.iter_mut().zip([first, second]) {
                all.push(numbers(row.into_iter().map(|x| x as f64 / 100.0)));
            }
        }
        two.map(Value::Array)
    }
}

/// Batches of a kind by name, each with all columns that an objective may read.
#[expect(clippy::too_many_lines, reason = "a table of numbers")]
fn batches(kind: &str) -> Vec<(&'static str, Inputs)> {
    let object = |value: Value| match value {
        Value::Object(object) => object,
        other => panic!("{other}"),
    };
    let one = f64::NEG_INFINITY;
    match kind {
        "pairs" => {
            let mut draw = Draw(7);
            let [chosen, ref_chosen] = draw.sequences(&[3, 1, 4, 2, 6, 2], 80);
            let [rejected, ref_rejected] = draw.sequences(&[2, 4, 1, 3, 2, 5], 80);
            let [gold, _] = draw.sequences(&[2, 3, 1, 4, 2, 3], 80);
            let ordinary = json!({
                "chosen.policy": chosen, "chosen.reference": ref_chosen,
                "rejected.policy": rejected, "rejected.reference": ref_rejected,
                "gold": gold,
                "margin": [-0.7, -0.3, 0.1, 0.5, 0.9, 1.3],
                "win_probability": [0.9, 0.5, 1.0, 0.0, 0.25, 0.6],
                "chosen.score": [1.5, 0.9, 0.3, -0.3, -0.9, 2.0],
                "rejected.score": [0.0, 0.2, 0.4, 0.6, 0.8, -1.0],
                "tied": [false, true, false, true, false, true],
                "chosen.kl": [0.0, 0.3, 0.6, 0.9, 1.2, 1.5],
                "rejected.kl": [2.0, 1.9, 1.8, 1.7, 1.6, 1.5],
                "delta": 0.3, "mean_margin": 0.2,
            });
            // An empty completion on either side, policy = reference, two equal completions.
            let edges = json!({
                "chosen.policy": [[], [-1.25, -0.5], [-0.75, -2.0, -0.25], [-1.5, -0.25]],
                "chosen.reference": [[], [-1.0, -0.75], [-0.75, -2.0, -0.25], [-1.25, -1.0]],
                "rejected.policy": [[-0.5, -1.75], [], [-3.0], [-1.5, -0.25]],
                "rejected.reference": [[-1.0, -0.25], [], [-3.0], [-1.25, -1.0]],
                "gold": [[-0.25], [-1.5, -0.5], [-2.0], [-0.125, -0.25]],
                "margin": [0.0, 0.5, -0.5, 1.0],
                "win_probability": [1.0, 0.0, 0.5, 0.75],
                "chosen.score": [1.0, 1.0, 0.0, 2.0], "rejected.score": [1.0, 0.0, 0.0, -1.0],
                "tied": [true, false, true, false],
                "chosen.kl": [0.0, 0.5, 0.0, 0.25], "rejected.kl": [0.5, 0.0, 0.0, 0.25],
                "delta": 0.0, "mean_margin": 0.0,
            });
            // Log-ratios of up to 60 nats, probabilities next to 1.
            let extreme = json!({
                "chosen.policy": [[-60.0], [-1e-8, -1e-12], [-1e-6, -1e-6, -1e-6], [-20.0, -20.5]],
                "chosen.reference": [[-20.0], [-30.0, -30.0], [-1e-6, -1e-6, -1e-6], [-0.5, -0.25]],
                "rejected.policy": [[-0.0001, -0.25], [-35.0, -45.0], [-50.0, -50.0], [-0.5]],
                "rejected.reference": [[-30.0, -30.0], [-5.0, -15.0], [-50.0, -50.0], [-40.5]],
                "gold": [[-60.0], [-1e-8], [-0.5, -80.0], [-1.0]],
                "margin": [100.0, -100.0, 0.0, 1e-6],
                "win_probability": [1.0, 0.0, 0.999, 1e-6],
                "chosen.score": [30.0, -30.0, 0.0, 10.0], "rejected.score": [-30.0, 30.0, 0.0, 10.0],
                "tied": [true, false, true, true],
                "chosen.kl": [0.0, 50.0, 1.0, 0.0], "rejected.kl": [50.0, 0.0, 1.0, 1e-6],
                "delta": -20.0, "mean_margin": -5.0,
            });
            // Sums of -1e4 nats, log-ratios of thousands.
            let far = json!({
                "chosen.policy": [[-5000.0, -5000.0], [-0.5, -0.25], [-10000.0], [-2500.0, -2500.0]],
                "chosen.reference": [[-4000.0, -5000.0], [-2000.0, -8000.0], [-10000.0], [-2500.0, -2499.0]],
                "rejected.policy": [[-0.5], [-10000.0, -1.0, -1.0], [-10000.0], [-1e-12]],
                "rejected.reference": [[-9000.5], [-1.0, -1.0, -1.0], [-10000.0], [-1e-12]],
                "gold": [[-10000.0], [-1e-8], [-5000.0, -5000.0], [-1.0]],
                "margin": [10000.0, -10000.0, 0.0, 1e-6],
                "win_probability": [1.0, 0.0, 0.5, 0.25],
                "chosen.score": [1000.0, -1000.0, 0.0, 1.0], "rejected.score": [-1000.0, 1000.0, 0.0, 1.0],
                "tied": [true, false, true, true],
                "chosen.kl": [0.0, 5000.0, 1.0, 0.0], "rejected.kl": [5000.0, 0.0, 1.0, 1e-6],
                "delta": 100.0, "mean_margin": 100.0,
            });
            // A token that the policy finds impossible, in the chosen and in the rejected completion.
            let impossible = json!({
                "chosen.policy": [[-1.0, number(one)], [-0.5]], "chosen.reference": [[-1.0, -2.0], [-1.0]],
                "rejected.policy": [[-0.5, -0.25], [-1.0, number(one)]],
                "rejected.reference": [[-1.0, -1.0], [-1.0, -2.0]],
                "gold": [[-0.5], [-1.0]], "margin": [0.0, 0.0], "win_probability": [1.0, 1.0],
                "chosen.score": [1.0, 1.0], "rejected.score": [0.0, 0.0], "tied": [false, false],
                "chosen.kl": [0.0, 0.0], "rejected.kl": [0.0, 0.0], "delta": 0.0, "mean_margin": 0.0,
            });
            [
                ("ordinary", ordinary),
                ("edges", edges),
                ("extreme", extreme),
                ("far", far),
                ("impossible", impossible),
            ]
            .map(|(name, batch)| (name, object(batch)))
            .into()
        }
        "completions" => {
            let mut draw = Draw(11);
            let [policy, reference] = draw.sequences(&[3, 1, 4, 2, 6], 80);
            let ordinary = json!({
                "policy": policy, "reference": reference,
                "desirable": [true, false, true, false, true], "z0": 0.4, "delta": 0.3,
                "score": [0.75, 0.25, 1.0, 0.0, 0.5], "value": [0.5, 0.1, -0.25, 0.75, 1.5],
            });
            let extreme = json!({
                "policy": [[], [-5000.0, -5000.0], [-0.5, -0.25], [-1e-12], [-60.0], [-0.0001]],
                "reference": [[], [-4000.0, -5000.0], [-2000.0, -8000.0], [-1e-12], [-20.0], [-60.0]],
                "desirable": [true, false, false, true, true, false], "z0": 100.0, "delta": -20.0,
                "score": [0.0, 1.0, 0.0, 1e-6, 1.0, 0.5], "value": [0.0, -100.0, 100.0, 0.0, 1.0, 1e-6],
            });
            [("ordinary", ordinary), ("extreme", extreme)]
                .map(|(name, batch)| (name, object(batch)))
                .into()
        }
        "lists" => {
            let mut draw = Draw(13);
            // Of 4, 3, 2 and 1 candidates, with equal scores in the second and the third list.
            let mut two = [Vec::new(), Vec::new()];
            for lengths in [&[3, 1, 4, 2][..], &[2, 5, 1], &[2, 3], &[4]] {
                for (all, list) in two.iter_mut().zip(draw.sequences(lengths, 80)) {
                    all.push(list);
                }
            }
            let [policy, reference] = two;
            let ordinary = json!({
                "policy": policy, "reference": reference,
                "score": [[0.9, 0.1, 0.5, 0.3], [1.0, 0.0, 1.0], [0.5, 0.5], [1.0]],
            });
            let extreme = json!({
                "policy": [[[-60.0], [-1e-8, -1e-12], [-5000.0, -5000.0]], [[], [-0.5]], [[-1.0], [-2.0, -3.0], [-0.5]]],
                "reference": [[[-20.0], [-30.0, -30.0], [-4000.0, -5000.0]], [[], [-10000.0]], [[-1.0], [-2.0, -3.0], [-0.5]]],
                "score": [[10.0, -10.0, 0.0], [1.0, 2.0], [3.0, 3.0, 1.0]],
            });
            [("ordinary", ordinary), ("extreme", extreme)]
                .map(|(name, batch)| (name, object(batch)))
                .into()
        }
        "reward_pairs" => {
            let ordinary = json!({
                "chosen.reward": [2.0, 0.5, -1.25, 0.0, 3.5, -0.75],
                "rejected.reward": [0.5, 1.5, -2.0, 0.0, -1.0, -0.5],
                "margin": [-0.7, -0.3, 0.1, 0.5, 0.9, 1.3],
                "win_probability": [0.9, 0.5, 1.0, 0.0, 0.25, 0.6],
                "tied": [false, true, false, true, false, true],
            });
            let extreme = json!({
                "chosen.reward": [1000.0, -1000.0, 10000.0, 1e-12], "rejected.reward": [-1000.0, 1000.0, 10000.0, 0.0],
                "margin": [100.0, -100.0, 0.0, 1e-6], "win_probability": [1.0, 0.0, 0.5, 1e-6],
                "tied": [true, false, true, true],
            });
            [("ordinary", ordinary), ("extreme", extreme)]
                .map(|(name, batch)| (name, object(batch)))
                .into()
        }
        "reward_lists" => {
            let ordinary = json!({
                "reward": [[0.5, -1.0, 2.0, 0.25], [1.0, 0.0, -0.5], [0.75, 0.25], [1.5]],
                "score": [[0.9, 0.1, 0.5, 0.3], [1.0, 0.0, 1.0], [0.5, 0.5], [1.0]],
            });
            let extreme = json!({
                "reward": [[1000.0, -1000.0, 0.0], [-10000.0, 10000.0], [1e-12, 0.0, -1e-12]],
                "score": [[10.0, -10.0, 0.0], [1.0, 0.0], [3.0, 3.0, 1.0]],
            });
            [("ordinary", ordinary), ("extreme", extreme)]
                .map(|(name, batch)| (name, object(batch)))
                .into()
        }
        "demonstrations" => {
            let mut draw = Draw(17);
            let [policy, _] = draw.sequences(&[3, 1, 4, 2], 0);
            let ordinary = json!({
                "policy": policy,
                "weight": [[1.0, 0.5, 0.0], [2.0], [0.25, 0.5, 0.75, 1.0], [1.0, 1.5]],
                "tokens_per_example": 3.5,
            });
            let extreme = json!({
                "policy": [[-10000.0], [-100_000.0, -1e-8, -1e-12], [], [-0.5]],
                "weight": [[1.0], [0.5, 1.0, 1.0], [], [0.0]],
                "tokens_per_example": 0.5,
            });
            let impossible = json!({
                "policy": [[-1.0, number(one)], [-0.5]],
                "weight": [[1.0, 1.0], [1.0]],
                "tokens_per_example": 1.5,
            });
            [
                ("ordinary", ordinary),
                ("extreme", extreme),
                ("impossible", impossible),
            ]
            .map(|(name, batch)| (name, object(batch)))
            .into()
        }
        "samples" => {
            let mut draw = Draw(19);
            let lengths = [3, 1, 4, 2, 3];
            let [policy, sampler] = draw.sequences(&lengths, 40);
            // Another model, of the same tokens.
            let away =
                rows(&policy).map(|row| {
                    let away = flat(row).into_iter().enumerate();
                    numbers(away.map(|(t, x)| {
                        (x * 100.0 - 30.0 + 17.0 * t as f64).min(-1.0).round() / 100.0
                    }))
                });
            let reference: Vec<Value> = away.collect();
            let ordinary = json!({
                "policy": policy, "sampler": sampler, "reference": reference,
                "reward": [1.0, 0.0, 0.5, 2.0, -1.0], "group": [0, 0, 0, 1, 1],
                "tokens_per_example": 3.0,
            });
            // Ratios of e^-20 and e^20, a group that teaches nothing, an empty sample.
            let extreme = json!({
                "policy": [[-20.0, -0.5], [-0.25], [], [-1.0, -1.0]],
                "sampler": [[-0.5, -0.5], [-20.25], [], [-1.0, -1.0]],
                "reference": [[-0.5, -20.0], [-0.25], [], [-1.0, -1.0]],
                "reward": [1.0, -1.0, 0.25, 0.25], "group": [4, 4, 7, 7],
                "tokens_per_example": 1.25,
            });
            [("ordinary", ordinary), ("extreme", extreme)]
                .map(|(name, batch)| (name, object(batch)))
                .into()
        }
        other => panic!("no kind {other}"),
    }
}

/// Which inputs a config reads of a kind of batch, beside its columns.
fn plain_inputs(config: &ObjectiveConfig, kind: &str) -> &'static [&'static str] {
    let referenced = config.takes().iter().all(Needs::has_reference);
    match (kind, referenced) {
        ("pairs", false) => &["chosen.policy", "rejected.policy"],
        ("pairs", true) => &[
            "chosen.policy",
            "chosen.reference",
            "rejected.policy",
            "rejected.reference",
        ],
        ("completions", false) | ("demonstrations", _) => &["policy"],
        ("completions", true) => &["policy", "reference"],
        ("lists", false) => &["policy", "score"],
        ("lists", true) => &["policy", "reference", "score"],
        ("reward_pairs", _) => &["chosen.reward", "rejected.reward"],
        ("reward_lists", _) => &["reward", "score"],
        ("samples", _) => &["policy", "sampler", "reward", "group"],
        _ => panic!("no kind {kind}"),
    }
}

/// Its paper, as docs/objectives.md has it.
fn paper(name: &str) -> Value {
    let table = include_str!("../../../docs/objectives.md");
    let row = table
        .lines()
        .find(|row| row.contains(&format!("| `{name}` |")));
    let paper = row.and_then(|row| Some(row.rsplit_once("](https://arxiv.org/abs/")?.1));
    paper.map_or(Value::Null, |rest| {
        json!(format!("arXiv:{}", rest.split(')').next().unwrap()))
    })
}

/// The file of an objective.
pub fn file(name: &str) -> Value {
    let row = OBJECTIVES.iter().find(|row| row.0 == name);
    let (_, formula, specs) = row.unwrap_or_else(|| {
        panic!("no vectors of {name}: a row of tests/conformance/vectors/cases.rs, CONTRIBUTING.md")
    });
    let mut used: BTreeMap<String, Inputs> = BTreeMap::new();
    let mut cases = Vec::new();
    for (kind, fields, columns) in *specs {
        let mut fields: Value = serde_json::from_str(fields).unwrap();
        fields["loss"] = json!(name);
        let config: ObjectiveConfig = serde_json::from_value(fields).unwrap();
        let mut reads = plain_inputs(&config, kind).to_vec();
        reads.extend(*columns);
        if *kind == "samples" && reads.contains(&"reference") {
            assert!(config.takes()[0].has_reference(), "{name}");
        }
        reads.sort_unstable();
        let reads: Vec<String> = reads.into_iter().map(str::to_owned).collect();
        for (batch, all) in batches(kind) {
            let inputs = chosen_inputs(&all, &reads);
            let Some(case) = case(&config, kind, batch, &inputs) else {
                assert_ne!(batch, "ordinary", "{name}: no loss of an ordinary batch");
                continue;
            };
            let place = used.entry(format!("{kind}.{batch}")).or_default();
            place.extend(inputs);
            cases.push(case);
        }
    }
    let batches: serde_json::Map<String, Value> = used
        .into_iter()
        .map(|(batch, inputs)| (batch, Value::Object(inputs)))
        .collect();
    let config: ObjectiveConfig = serde_json::from_value(cases[0]["config"].clone()).unwrap();
    json!({
        "version": VERSION,
        "objective": name,
        "paper": paper(name),
        "formula": formula,
        "whole_batch": config.takes().iter().any(|needs| needs.whole_batch),
        "batches": batches,
        "cases": cases,
    })
}

/// What comes out; none where the formula has no number, or the crate holds an exponential that it
/// takes.
fn case(config: &ObjectiveConfig, kind: &str, batch: &str, inputs: &Inputs) -> Option<Value> {
    let outcome = evaluate(
        config,
        kind,
        &Seeded {
            inputs,
            moves: None,
        },
    );
    let losses: Vec<f64> = outcome.losses.iter().map(|loss| loss.value).collect();
    let mut gradients = serde_json::Map::new();
    for key in inputs.keys().filter(|key| LEARNED.contains(&key.as_str())) {
        // A reward of samples is data.
        if kind == "samples" && key == "reward" {
            continue;
        }
        let gradient = gradient(config, kind, inputs, key);
        let flows = key != "value" || flat(&gradient).iter().any(|slope| *slope != 0.0);
        if flows {
            gradients.insert(key.clone(), gradient);
        }
    }
    // `null` is a NaN, and the place of an empty completion in a gradient.
    let gradients = Value::Object(gradients);
    let undefined = losses.iter().any(|loss| loss.is_nan())
        || has_nan(&outcome.rewards)
        || gradients
            .as_object()
            .unwrap()
            .iter()
            .any(|(key, gradient)| {
                // Of tokens an empty completion has an empty list.
                let of_tokens = ["demonstrations", "samples"].contains(&kind);
                nulls(gradient)
                    != if of_tokens {
                        0
                    } else {
                        empty_rows(&inputs[key])
                    }
            });
    if outcome.held || undefined {
        return None;
    }
    let mean = losses.iter().sum::<f64>() / losses.len() as f64;
    let reads: Vec<&String> = inputs.keys().collect();
    Some(json!({
        "kind": kind,
        "batch": format!("{kind}.{batch}"),
        "reads": reads,
        "config": config,
        "losses": numbers(losses),
        "mean": number(mean),
        "rewards": outcome.rewards,
        "gradients": gradients,
    }))
}

fn nulls(value: &Value) -> usize {
    match value {
        Value::Null => 1,
        Value::Array(values) => values.iter().map(nulls).sum(),
        _ => 0,
    }
}

fn has_nan(value: &Value) -> bool {
    match value {
        Value::Object(sides) => sides.values().any(has_nan),
        value => nulls(value) > 0,
    }
}

/// Sequences without a token.
fn empty_rows(value: &Value) -> usize {
    match value {
        Value::Array(values) if values.is_empty() => 1,
        Value::Array(values) => values.iter().map(empty_rows).sum(),
        _ => 0,
    }
}
