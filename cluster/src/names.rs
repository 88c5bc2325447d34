//! The names that injection, chart, examples and tests agree on.
//!
//! Invariant: a name is written here once; whatever has to repeat it (the chart, documents) is
//! compared with this file by a test. Refuses to hold anything that could be a setting.

/// Label of a pod or of its namespace that asks for injection: [`WANTED`] or [`UNWANTED`].
pub const INJECT_LABEL: &str = "warpdrive.io/inject";
/// Value of [`INJECT_LABEL`] that asks for injection.
pub const WANTED: &str = "true";
/// Value of [`INJECT_LABEL`] on a pod that wins over its namespace.
pub const UNWANTED: &str = "false";
/// What every setting's annotation begins with: `warpdrive.io/cache-size`.
pub const ANNOTATION_PREFIX: &str = "warpdrive.io/";
/// Annotation that says what injection did; written by it, never read as a setting.
pub const STATUS_ANNOTATION: &str = "warpdrive.io/status";

/// Container that holds the mount: the only privileged one.
pub const MOUNTD_CONTAINER: &str = "warpdrive-mountd";
/// Container of the worker.
pub const WORKER_CONTAINER: &str = "warpdrive";
/// Init container that fetches ahead of the main containers.
pub const WARM_CONTAINER: &str = "warpdrive-warm";

/// Volume whose subdirectory [`MOUNT_SUBDIRECTORY`] is mounted over and shared with the pod.
pub const MOUNT_VOLUME: &str = "warpdrive-mount";
/// Volume for sockets and for what outlives a worker: in memory.
pub const RUN_VOLUME: &str = "warpdrive-run";
/// Volume with the holder's socket, from the node service.
pub const SOCKET_VOLUME: &str = "warpdrive-socket";
/// Volume of the disk tier.
pub const CACHE_VOLUME: &str = "warpdrive-cache";
/// Volume with the configuration.
pub const CONFIG_VOLUME: &str = "warpdrive-config";
/// Volume with projected service-account tokens.
pub const TOKENS_VOLUME: &str = "warpdrive-tokens";
/// Empty volume that lies where the API server would mount the pod's own token into our containers.
pub const NO_TOKEN_VOLUME: &str = "warpdrive-no-token";

/// Where [`MOUNT_VOLUME`] is in our own containers.
pub const MOUNT_DIRECTORY: &str = "/warpdrive";
/// Directory below [`MOUNT_DIRECTORY`] that is mounted over. Not the volume itself: a container
/// cannot be started again while the root of one of its volumes is a dead mount.
pub const MOUNT_SUBDIRECTORY: &str = "data";
/// Where [`RUN_VOLUME`] is in our own containers.
pub const RUN_DIRECTORY: &str = "/run/warpdrive";
/// Directory below [`RUN_DIRECTORY`] that is the worker's `state_dir`.
pub const STATE_SUBDIRECTORY: &str = "worker";
/// Where [`SOCKET_VOLUME`] is in the worker.
pub const SOCKET_DIRECTORY: &str = "/run/warpdrive-holder";
/// File name of the holder's socket, in [`RUN_DIRECTORY`] or [`SOCKET_DIRECTORY`].
pub const HOLDER_SOCKET: &str = "mount.sock";
/// Where [`CACHE_VOLUME`] is in the worker.
pub const CACHE_DIRECTORY: &str = "/var/cache/warpdrive";
/// Where [`CONFIG_VOLUME`] is in the worker.
pub const CONFIG_DIRECTORY: &str = "/etc/warpdrive";
/// Key of a `ConfigMap` or `Secret` that holds the configuration.
pub const CONFIG_KEY: &str = "warpdrive.yaml";
/// Where [`TOKENS_VOLUME`] is in the worker.
pub const TOKENS_DIRECTORY: &str = "/var/run/secrets/warpdrive.io/tokens";
/// Where [`NO_TOKEN_VOLUME`] is in our own containers: nobody mounts a token where something is mounted.
pub const API_TOKEN_DIRECTORY: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The program in the image.
pub const PROGRAM: &str = "/usr/local/bin/warpdrive";

/// User and group of the worker in the image and in every injected container but the holder's:
/// `nobody` of Debian and of distroless images.
pub const WORKER_ID: u32 = 65534;
/// S3 endpoint of the worker, on loopback.
pub const S3_PORT: u16 = 9000;
/// Admin endpoint of the worker, on loopback.
pub const ADMIN_PORT: u16 = 9091;
/// Metrics of the worker, for Prometheus.
pub const METRICS_PORT: u16 = 9090;
/// Port of the webhook.
pub const WEBHOOK_PORT: u16 = 8443;
/// Name of the CSI driver.
pub const CSI_DRIVER: &str = "csi.warpdrive.io";
/// Attribute of an inline CSI volume that says what it is: [`CSI_ROLE_MOUNT`] or [`CSI_ROLE_SOCKET`].
pub const CSI_ROLE: &str = "role";
/// [`CSI_ROLE`] of the volume that is the mount itself.
pub const CSI_ROLE_MOUNT: &str = "mount";
/// [`CSI_ROLE`] of the volume that holds the holder's socket.
pub const CSI_ROLE_SOCKET: &str = "socket";
/// Attribute of an inline CSI volume: the user that may be the worker.
pub const CSI_WORKER_UID: &str = "workerUid";
