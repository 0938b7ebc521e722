//! One line per epoch, instead of burn-train's dashboard (feature `tui`) or its line per batch.

use std::collections::BTreeMap;

use burn::train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn::train::metric::{MetricDefinition, MetricId, NumericEntry};
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining,
};

#[derive(Default)]
pub struct Lines {
    names: Vec<(MetricId, String)>,
    split: String,
    values: BTreeMap<String, f64>,
}

impl Lines {
    fn update(&mut self, state: MetricState) {
        if let MetricState::Numeric(entry, Some(value)) = state
            && let Some((_, name)) = self.names.iter().find(|(id, _)| *id == entry.metric_id)
            && let NumericEntry::Value(value)
            | NumericEntry::Final(value)
            | NumericEntry::Aggregated {
                aggregated_value: value,
                ..
            } = value
        {
            self.values.insert(name.clone(), value);
        }
    }
}

impl MetricsRendererTraining for Lines {
    fn update_train(&mut self, state: MetricState) {
        self.update(state);
    }

    fn update_valid(&mut self, state: MetricState) {
        self.update(state);
    }
}

impl TrainingProgressLogger for Lines {
    fn start(&mut self, epochs: usize, first: usize, _: Option<usize>, _: Option<&str>) {
        println!("  epochs {first} to {epochs}");
    }

    fn start_split(&mut self, split: &str, _: usize) {
        split.clone_into(&mut self.split);
    }

    fn end_split(&mut self) {
        let values = self.values.iter().map(|(name, x)| format!("{name} {x:.3}"));
        println!(
            "  {}: {}",
            self.split,
            values.collect::<Vec<_>>().join(", ")
        );
    }

    fn update_epoch(&mut self, _: usize) {}
    fn update_split(&mut self, _: usize) {}
    fn end(&mut self) {}
    fn log_event_training(&mut self, _: String) {}
}

impl EvaluationProgressLogger for Lines {
    fn start_global_progress(&mut self, _: usize) {}
    fn start_test(&mut self, _: &str, _: usize) {}
    fn update_test_progress(&mut self, _: usize) {}
    fn end_test(&mut self) {}
    fn end_global_progress(&mut self) {}
    fn log_event_evaluation(&mut self, _: String) {}
}

impl MetricsRendererEvaluation for Lines {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}
}

impl MetricsRenderer for Lines {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.names
            .push((definition.metric_id, definition.name.to_string()));
    }
}
