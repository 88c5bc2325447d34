//! `warpdrive inject`: manifests with the cache in their pods, without a webhook.
//!
//! Invariant: prints everything or nothing; what it prints is what the webhook would have made. Never
//! talks to a cluster.

use std::io::Read;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use cluster::inject::{Defaults, manifests};
use cluster::policy::policy;

use super::{Stop, put};

/// Largest file that is read: a hundred times what one object in a cluster may have.
const MOST_BYTES: u64 = 128 << 20;

/// What is injected.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  warpdrive inject -f job.yaml | kubectl apply -f -
  kubectl get deployment trainer -o yaml | warpdrive inject -f - --only trainer
  warpdrive inject -f job.yaml --image registry.example/warpdrive:0.1.0 --set mode=s3 --set warm=train/
  helm template ./trainer | warpdrive inject -f - --defaults webhook-settings.yaml
  warpdrive inject --policy --set mode=csi | kubectl apply -f -        no webhook, Kubernetes 1.36

Pod templates are found in every kind: Pod, Deployment, StatefulSet, DaemonSet, Job, CronJob, JobSet,
PyTorchJob, MPIJob, RayCluster, RayJob, Argo workflows, and in kinds made of those. A pod's own
annotations warpdrive.io/NAME win over --set, and --set over --defaults. A pod with the label
warpdrive.io/inject: \"false\" stays as it is. Comments are lost. Every annotation: docs/kubernetes.md")]
pub(super) struct InjectArgs {
    /// YAML documents or JSON; `-` for standard input.
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath, required_unless_present = "policy")]
    file: Option<PathBuf>,
    /// Print a `MutatingAdmissionPolicy` that makes the same pods, with its bindings and the policy that
    /// denies what it cannot do, instead of injecting a file.
    #[arg(long, conflicts_with_all = ["file", "only"])]
    policy: bool,
    /// Version of `admissionregistration.k8s.io` for --policy: v1 since Kubernetes 1.36, v1beta1 before.
    #[arg(long, value_name = "VERSION", default_value = "v1", value_parser = ["v1", "v1beta1"])]
    policy_version: String,
    /// The image of the containers that are added.
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// The webhook's settings file.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    defaults: Option<PathBuf>,
    /// A default for an annotation, such as `cache-size=50Gi`; may be given more than once.
    #[arg(long, value_name = "ANNOTATION=VALUE")]
    set: Vec<String>,
    /// Only objects with this name; may be given more than once.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

pub(super) fn inject(args: &InjectArgs) -> Result<(), Stop> {
    let defaults = defaults(args)?;
    let Some(file) = &args.file else {
        let text = policy(&defaults, &args.policy_version);
        put(&text.map_err(|denial| Stop::Unusable(denial.to_string()))?);
        return Ok(());
    };
    let name = file.display();
    let text = read(file)?;
    let result = manifests(&text, &args.only, &defaults)
        .map_err(|what| Stop::Failed(format!("{name}: {what}")))?;
    for note in &result.notes {
        eprintln!("warpdrive: {note}");
    }
    if result.injected.is_empty() && result.notes.is_empty() {
        let what = match args.only.as_slice() {
            [] => "no pod template is in it".to_owned(),
            names => format!("no pod template belongs to {}", names.join(" or ")),
        };
        return Err(Stop::Failed(format!("{name}: {what}")));
    }
    put(&result.text);
    Ok(())
}

fn defaults(args: &InjectArgs) -> Result<Defaults, Stop> {
    let mut defaults = match &args.defaults {
        None => Defaults::default(),
        Some(path) => Defaults::from_yaml(&read(path)?)
            .map_err(|what| Stop::Unusable(format!("{}: {what}", path.display())))?,
    };
    if let Some(image) = &args.image {
        defaults.image.clone_from(image);
    }
    for assignment in &args.set {
        defaults.set(assignment).map_err(|what| Stop::Unusable(format!("--set {what}")))?;
    }
    defaults.check().map_err(|denial| Stop::Unusable(denial.to_string()))?;
    Ok(defaults)
}

fn read(path: &std::path::Path) -> Result<String, Stop> {
    let unreadable = |what: String| Stop::Unusable(format!("{}: {what}", path.display()));
    let mut text = String::new();
    let mut from: Box<dyn Read> = if path.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).map_err(|e| unreadable(e.to_string()))?)
    };
    from.by_ref()
        .take(MOST_BYTES)
        .read_to_string(&mut text)
        .map_err(|e| unreadable(format!("cannot be read as text: {e}")))?;
    if text.len() as u64 == MOST_BYTES {
        return Err(unreadable(format!("has more than {MOST_BYTES} bytes")));
    }
    Ok(text)
}
