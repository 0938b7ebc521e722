//! Findings of the policy's parameters: no model is called.

use std::collections::HashMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;

use super::finding::Finding;

pub(super) fn findings<M: Module>(policy: &M) -> Vec<Finding> {
    let mut fields = Fields::default();
    policy.visit(&mut fields);
    let parameters = fields.of.values().filter(|times| times.1 > 1).count();
    let shared = fields
        .first_shared
        .map(|fields| Finding::SharedParameter { parameters, fields });
    shared.into_iter().collect()
}

/// The fields in which trainable parameters stand.
#[derive(Default)]
struct Fields {
    path: Vec<String>,
    /// The first field of each parameter, and the number of its fields.
    of: HashMap<ParamId, (String, usize)>,
    first_shared: Option<[String; 2]>,
}

impl ModuleVisitor for Fields {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        // A constant may stand in as many fields as it likes.
        if !param.is_require_grad() {
            return;
        }
        let field = self.path.join(".");
        let (first, times) = self.of.entry(param.id).or_insert((field.clone(), 0));
        *times += 1;
        if *times == 2 && self.first_shared.is_none() {
            self.first_shared = Some([first.clone(), field]);
        }
    }
}
