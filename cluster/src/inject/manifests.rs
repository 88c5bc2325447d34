//! Manifests in, injected manifests out: what the webhook would do, without one.
//!
//! Invariant: only pod templates change, and only by what injection adds; order and everything that is
//! not known stays (comments go, as with every tool that reads YAML). A pod template is found by its
//! shape, so that kinds nobody has heard of work too; at the top of an object that shape is a pod only
//! where its kind says so.

mod tree;

use serde::Deserialize;
use serde_yaml::Value;

use super::{Context, Defaults, Operation, Outcome, inject, patch, yaml};
use tree::{Step, apply, at, at_mut, pointer};

/// Name of the container that an Argo template has only one of.
const ARGO_MAIN: &str = "main";

/// Injected manifests.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifests {
    /// YAML documents, or JSON where that was given.
    pub text: String,
    /// `Kind/name` of each pod template that was injected.
    pub injected: Vec<String>,
    /// What the author should know.
    pub notes: Vec<String>,
}

/// Injects every pod template in a text of YAML documents or JSON objects; with names in `only`, just
/// those of objects called so.
///
/// # Errors
/// One sentence: what cannot be read, or which template cannot be injected and why.
pub fn manifests(text: &str, only: &[String], defaults: &Defaults) -> Result<Manifests, String> {
    let is_json = text.trim_start().starts_with(['{', '[']);
    let mut documents = read(text, is_json)?;
    let mut work = Work { only, defaults, injected: Vec::new(), notes: Vec::new() };
    for document in &mut documents {
        work.document(document)?;
    }
    let printed = print(&documents, is_json)?;
    Ok(Manifests { text: printed, injected: work.injected, notes: work.notes })
}

fn read(text: &str, is_json: bool) -> Result<Vec<Value>, String> {
    // Straight into a YAML value, which keeps the order of members.
    let documents: Result<Vec<Value>, String> = if is_json {
        serde_json::Deserializer::from_str(text)
            .into_iter()
            .map(|document| document.map_err(|e| format!("is not JSON: {e}")))
            .collect()
    } else {
        serde_yaml::Deserializer::from_str(text)
            .map(|document| Value::deserialize(document).map_err(|e| format!("is not YAML: {e}")))
            .collect()
    };
    let mut documents = documents?;
    documents.retain(|document| !document.is_null());
    for document in &mut documents {
        document.apply_merge().map_err(|e| format!("has a merge key that cannot be used: {e}"))?;
    }
    Ok(documents)
}

fn print(documents: &[Value], is_json: bool) -> Result<String, String> {
    let mut text = String::new();
    for (index, document) in documents.iter().enumerate() {
        if is_json {
            let one = serde_json::to_string_pretty(document);
            text.push_str(&one.map_err(|e| format!("cannot be printed as JSON: {e}"))?);
            text.push('\n');
            continue;
        }
        if index > 0 {
            text.push_str("---\n");
        }
        text.push_str(&yaml::print(document)?);
    }
    Ok(text)
}

/// One run over all documents.
struct Work<'a> {
    only: &'a [String],
    defaults: &'a Defaults,
    injected: Vec<String>,
    notes: Vec<String>,
}

/// The object that a template belongs to, for messages.
struct Owner {
    kind: String,
    name: String,
    namespace: String,
}

impl Owner {
    fn of(document: &Value) -> Self {
        let text = |steps: &[&str]| {
            let found = steps.iter().try_fold(document, |value, step| value.get(*step));
            found.and_then(Value::as_str).unwrap_or("").to_owned()
        };
        let mut name = text(&["metadata", "name"]);
        if name.is_empty() {
            name = text(&["metadata", "generateName"]);
        }
        Self { kind: text(&["kind"]), name, namespace: text(&["metadata", "namespace"]) }
    }

    fn label(&self, path: &[Step]) -> String {
        let place = pointer(path);
        let place = if path.is_empty() { String::new() } else { format!(" ({place})") };
        format!("{}/{}{place}", self.kind, self.name)
    }
}

impl Work<'_> {
    fn document(&mut self, document: &mut Value) -> Result<(), String> {
        if document.is_sequence() {
            let items = document.as_sequence_mut().map(std::mem::take).unwrap_or_default();
            let mut done = Vec::with_capacity(items.len());
            for mut item in items {
                self.document(&mut item)?;
                done.push(item);
            }
            *document = Value::Sequence(done);
            return Ok(());
        }
        let owner = Owner::of(document);
        let is_list =
            owner.kind.ends_with("List") && document.get("items").is_some_and(Value::is_sequence);
        if is_list {
            if let Some(items) = document.get_mut("items") {
                self.document(items)?;
            }
            return Ok(());
        }
        let unwanted = !self.only.is_empty() && !self.only.contains(&owner.name);
        if unwanted || owner.kind == "CustomResourceDefinition" {
            return Ok(());
        }
        let mut templates = Vec::new();
        find(document, &mut Vec::new(), &mut templates);
        // Others have containers in their spec too, which are parts of pods that they make.
        if owner.kind != "Pod" && templates == [Vec::new()] {
            templates.clear();
            let label = owner.label(&[]);
            self.notes.push(format!("{label}: left as it is, no pod and without a pod template"));
        }
        for path in templates {
            self.template(document, &path, &owner)?;
        }
        let mut workflows = Vec::new();
        find_argo(document, &mut workflows);
        for path in workflows {
            self.argo(document, &path, &owner)?;
        }
        Ok(())
    }

    /// Injects one pod and says what is to be changed in it.
    fn pod(
        &mut self,
        pod: &serde_json::Value,
        defaults: &Defaults,
        owner: &Owner,
        path: &[Step],
    ) -> Result<Vec<Operation>, String> {
        let label = owner.label(path);
        let uid = format!("{}/{label}", owner.namespace);
        let started = pod.pointer("/status/startTime").is_some_and(serde_json::Value::is_string);
        if started {
            self.notes.push(format!("{label}: left as it is, it runs already"));
            return Ok(Vec::new());
        }
        let request = Context { namespace: &owner.namespace, uid: &uid };
        match inject(pod, &request, defaults).map_err(|denial| format!("{label}: {denial}"))? {
            Outcome::Untouched { why } => {
                self.notes.push(format!("{label}: left as it is, {why}"));
                Ok(Vec::new())
            }
            Outcome::Injected { pod: injected, warnings } => {
                self.notes.extend(warnings.into_iter().map(|what| format!("{label}: {what}")));
                let is_on_host = injected.pointer("/spec/hostNetwork").is_some_and(|is| is == true);
                if is_on_host && owner.kind != "Pod" {
                    self.notes.push(format!(
                        "{label}: hostNetwork: all pods of this template have the same ports, so one of them fits on a node; injection by the webhook gives each its own"
                    ));
                }
                let operations = patch(pod, &injected);
                self.injected.push(label);
                Ok(operations)
            }
        }
    }

    fn template(
        &mut self,
        document: &mut Value,
        path: &[Step],
        owner: &Owner,
    ) -> Result<(), String> {
        let Some(template) = at(document, path) else { return Ok(()) };
        let pod = as_json(template).map_err(|e| format!("{}: {e}", owner.label(path)))?;
        let operations = self.pod(&pod, self.defaults, owner, path)?;
        let Some(template) = at_mut(document, path) else { return Ok(()) };
        apply(template, &operations).map_err(|e| format!("{}: {e}", owner.label(path)))
    }

    /// A template of an Argo workflow is no pod template, but has the parts of one elsewhere.
    fn argo(&mut self, document: &mut Value, path: &[Step], owner: &Owner) -> Result<(), String> {
        let said = |e: String| format!("{}: {e}", owner.label(path));
        let Some(template) = at(document, path) else { return Ok(()) };
        let workflow =
            at(document, &path[..path.len() - 2]).map(as_json).transpose().map_err(said)?;
        let workflow = workflow.unwrap_or_default();
        let template = as_json(template).map_err(said)?;
        let main = if template.get("script").is_some() { "script" } else { "container" };
        let mut pod = serde_json::json!({"spec": {}});
        if let Some(metadata) = template.get("metadata") {
            pod["metadata"] = metadata.clone();
        }
        let mut first = template[main].clone();
        first["name"] = ARGO_MAIN.into();
        let mut containers = vec![first];
        containers.extend(template["sidecars"].as_array().cloned().unwrap_or_default());
        pod["spec"]["containers"] = containers.into();
        for (name, also) in
            [("initContainers", false), ("volumes", false), ("securityContext", true)]
        {
            let inherited = also.then(|| workflow.get(name)).flatten();
            if let Some(value) = template.get(name).or(inherited) {
                pod["spec"][name] = value.clone();
            }
        }
        if let Some(value) = workflow.get("hostNetwork") {
            pod["spec"]["hostNetwork"] = value.clone();
        }
        // What the workflow says of all its pods comes before the administrator's defaults.
        let mut defaults = self.defaults.clone();
        if let Some(all) =
            workflow.pointer("/podMetadata/annotations").and_then(|all| all.as_object())
        {
            for (key, value) in all {
                if let (Some(name), Some(value)) =
                    (key.strip_prefix(crate::names::ANNOTATION_PREFIX), value.as_str())
                {
                    defaults.annotations.insert(name.to_owned(), value.to_owned());
                }
            }
        }
        let operations = self.pod(&pod, &defaults, owner, path)?;
        let mut here = Vec::new();
        for operation in operations {
            match argo_place(&operation, main) {
                Some(moved) => here.push(moved),
                None => self.grace(&template, operation, &mut here, &owner.label(path)),
            }
        }
        let Some(there) = at_mut(document, path) else { return Ok(()) };
        apply(there, &here).map_err(said)
    }

    /// Argo has no place for a grace period but a patch of its own.
    fn grace(
        &mut self,
        template: &serde_json::Value,
        operation: Operation,
        here: &mut Vec<Operation>,
        label: &str,
    ) {
        let (Operation::Add { value, .. } | Operation::Replace { value, .. }) = operation else {
            return;
        };
        let text = serde_json::json!({"terminationGracePeriodSeconds": value}).to_string();
        match template.get("podSpecPatch") {
            None => {
                here.push(Operation::Add { path: "/podSpecPatch".to_owned(), value: text.into() });
            }
            Some(theirs) if theirs.as_str() == Some(&text) => {}
            Some(_) => self.notes.push(format!("{label}: add {text} to its podSpecPatch")),
        }
    }
}

/// Where a change of the pod belongs in an Argo template; `None` for the grace period.
fn argo_place(operation: &Operation, main: &str) -> Option<Operation> {
    let moved = |path: &str| -> Option<String> {
        if let Some(rest) = path.strip_prefix("/spec/containers/") {
            let (index, rest) = rest.split_once('/').unwrap_or((rest, ""));
            return match index.parse::<usize>().ok()? {
                0 => Some(format!("/{main}/{rest}")),
                index => Some(format!("/sidecars/{}/{rest}", index - 1)),
            };
        }
        if path.starts_with("/spec/terminationGracePeriodSeconds") {
            return None;
        }
        Some(path.strip_prefix("/spec").unwrap_or(path).to_owned())
    };
    Some(match operation {
        Operation::Add { path, value } => {
            Operation::Add { path: moved(path)?, value: value.clone() }
        }
        Operation::Replace { path, value } => {
            Operation::Replace { path: moved(path)?, value: value.clone() }
        }
        Operation::Remove { path } => Operation::Remove { path: moved(path)? },
    })
}

fn as_json(value: &Value) -> Result<serde_json::Value, String> {
    serde_json::to_value(value).map_err(|e| format!("has no form in JSON: {e}"))
}

/// Finds pod templates: objects with a `spec` that has a list of `containers` with names.
fn find(value: &Value, path: &mut Vec<Step>, found: &mut Vec<Vec<Step>>) {
    let containers =
        value.get("spec").and_then(|spec| spec.get("containers")).and_then(Value::as_sequence);
    let named = |container: &Value| container.get("name").is_some_and(Value::is_string);
    if containers.is_some_and(|all| !all.is_empty() && all.iter().all(named)) {
        found.push(path.clone());
        return;
    }
    match value {
        Value::Mapping(members) => {
            for (key, member) in members {
                if let Some(key) = key.as_str() {
                    path.push(Step::Key(key.to_owned()));
                    find(member, path, found);
                    path.pop();
                }
            }
        }
        Value::Sequence(items) => {
            for (index, item) in items.iter().enumerate() {
                path.push(Step::Index(index));
                find(item, path, found);
                path.pop();
            }
        }
        _ => {}
    }
}

/// Finds templates of Argo workflows that run one container.
fn find_argo(document: &Value, found: &mut Vec<Vec<Step>>) {
    let is_argo = document
        .get("apiVersion")
        .and_then(Value::as_str)
        .is_some_and(|version| version.starts_with("argoproj.io/"));
    if !is_argo {
        return;
    }
    for above in [&["spec"][..], &["spec", "workflowSpec"]] {
        let path: Vec<Step> =
            above.iter().chain(&["templates"]).map(|key| Step::Key((*key).to_owned())).collect();
        let templates = at(document, &path).and_then(Value::as_sequence);
        for (index, template) in templates.into_iter().flatten().enumerate() {
            if ["container", "script"]
                .iter()
                .any(|main| template.get(*main).is_some_and(Value::is_mapping))
            {
                let mut path = path.clone();
                path.push(Step::Index(index));
                found.push(path);
            }
        }
    }
}
