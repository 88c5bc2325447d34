"""For each alert: series under which it fires, and series under which it must not.

Series are as promtool writes them, one sample a minute. Each case is looked at after `at` minutes.
Labels `job` and `instance` are added by the test.
"""

AT = 50
# Up to the end of a case.
N = AT + 5


def constant(value):
    return f"{value}+0x{N}"


def rising(step):
    return f"0+{step}x{N}"


def histogram(name, at_most, labels=""):
    """One observation a second below `at_most`, none below a tenth of it."""
    comma = "," if labels else ""
    return {
        f'{name}_bucket{{{labels}{comma}le="{at_most / 10}"}}': rising(0),
        f'{name}_bucket{{{labels}{comma}le="{at_most}"}}': rising(60 * 10),
        f'{name}_bucket{{{labels}{comma}le="+Inf"}}': rising(60 * 10),
        f"{name}_count{{{labels}}}": rising(60 * 10),
    }


# A burst at the end is too short for an alert with a `for`.
BURST = f"0+0x{AT - 1} 100+100x5"

CASES = {
    "WarpDriveDown": (
        {"up": constant(0)},
        {"up": f"1+0x{AT - 3} 0+0x10"},
    ),
    "WarpDriveNotReady": ({"warpdrive_ready": constant(0)}, {"warpdrive_ready": f"1+0x{AT - 3} 0+0x10"}),
    "WarpDriveMountLost": ({"warpdrive_mount_up": constant(0)}, {"warpdrive_mount_up": constant(1)}),
    "WarpDriveMountRemounted": (
        {"warpdrive_mount_remounts_total": f"0+0x{AT - 5} 1+0x10"},
        {"warpdrive_mount_remounts_total": f"0+0x10 1+0x{N}"},
    ),
    "WarpDriveWorkerRestarting": (
        {"warpdrive_worker_restarts_total": f"0+0x{AT - 10} 1+1x15"},
        {"warpdrive_worker_restarts_total": f"0+0x{AT - 5} 1+0x10"},
    ),
    "WarpDriveReadErrors": (
        {'warpdrive_fuse_errors_total{operation="read",errno="EIO"}': rising(10)},
        {'warpdrive_fuse_errors_total{operation="lookup",errno="ENOENT"}': rising(1000)},
    ),
    "WarpDriveS3Errors": (
        {
            'warpdrive_s3_requests_total{operation="GetObject",status="2xx"}': rising(970),
            'warpdrive_s3_requests_total{operation="GetObject",status="5xx"}': rising(30),
        },
        {
            'warpdrive_s3_requests_total{operation="GetObject",status="2xx"}': rising(700),
            'warpdrive_s3_requests_total{operation="GetObject",status="4xx"}': rising(300),
            'warpdrive_s3_requests_total{operation="GetObject",status="5xx"}': rising(5),
        },
    ),
    "WarpDriveS3AuthFailures": (
        {
            'warpdrive_s3_auth_failures_total{reason="unsigned"}': rising(5),
            'warpdrive_s3_auth_failures_total{reason="unknown_key"}': rising(5),
        },
        {'warpdrive_s3_auth_failures_total{reason="unsigned"}': rising(3)},
    ),
    "WarpDriveUploadsDamaged": (
        {'warpdrive_s3_checksum_failures_total{algorithm="crc32"}': f"0+0x{AT - 5} 1+0x10"},
        {'warpdrive_s3_checksum_failures_total{algorithm="crc32"}': constant(3)},
    ),
    "WarpDriveOriginDown": (
        # The breaker tries the origin again and again in between.
        {'warpdrive_backend_breaker_state{backend="train"}': "2 1 2 2 1 2 2 2 2 " * (N // 9 + 1)},
        {'warpdrive_backend_breaker_state{backend="train"}': f"0+0x{AT - 2} 2 0+0x10"},
    ),
    "WarpDriveOriginErrors": (
        {
            'warpdrive_backend_errors_total{backend="train",error_type="unavailable"}': rising(10),
            'warpdrive_backend_requests_total{backend="train",operation="get"}': rising(60),
            'warpdrive_backend_requests_total{backend="train",operation="head"}': rising(40),
        },
        {
            'warpdrive_backend_errors_total{backend="train",error_type="not_found"}': rising(90),
            'warpdrive_backend_requests_total{backend="train",operation="head"}': rising(100),
        },
    ),
    "WarpDriveOriginDenied": (
        {'warpdrive_backend_errors_total{backend="train",error_type="unauthenticated"}': rising(1)},
        {'warpdrive_backend_errors_total{backend="train",error_type="not_found"}': rising(100)},
    ),
    "WarpDriveCredentialsNotRenewed": (
        {'warpdrive_auth_refresh_total{provider="s3",status="failure"}': f"0+0x{AT - 5} 1+0x10"},
        {'warpdrive_auth_refresh_total{provider="s3",status="success"}': rising(1)},
    ),
    "WarpDriveOriginRetries": (
        {
            'warpdrive_backend_retries_total{backend="train",operation="get"}': rising(30),
            'warpdrive_backend_requests_total{backend="train",operation="get"}': rising(100),
        },
        {
            'warpdrive_backend_retries_total{backend="train",operation="get"}': rising(10),
            'warpdrive_backend_requests_total{backend="train",operation="get"}': rising(100),
        },
    ),
    "WarpDriveOriginSlow": (
        histogram("warpdrive_backend_request_duration_seconds", 5, 'backend="train",operation="get"'),
        # Completing an upload may take minutes.
        histogram("warpdrive_backend_request_duration_seconds", 120, 'backend="train",operation="complete"'),
    ),
    "WarpDriveServingStale": (
        {"warpdrive_cache_stale_served_total": rising(1)},
        {"warpdrive_cache_stale_served_total": BURST},
    ),
    "WarpDriveCacheTierDown": (
        {'warpdrive_cache_tier_up{tier="disk"}': constant(0)},
        {'warpdrive_cache_tier_up{tier="disk"}': constant(1)},
    ),
    "WarpDriveCacheDamaged": (
        {
            "warpdrive_cache_bad_blocks_total": f"0+0x{AT - 5} 1+0x10",
            "warpdrive_cache_file_bad_total": constant(0),
        },
        {"warpdrive_cache_bad_blocks_total": constant(7), "warpdrive_cache_file_bad_total": constant(7)},
    ),
    "WarpDriveCacheDiskFull": (
        {
            "warpdrive_cache_disk_free_bytes": constant(5e8),
            "warpdrive_cache_disk_min_free_bytes": constant(1e9),
        },
        {
            "warpdrive_cache_disk_free_bytes": constant(5e9),
            "warpdrive_cache_disk_min_free_bytes": constant(1e9),
        },
    ),
    "WarpDriveCacheDropping": (
        {'warpdrive_cache_dropped_total{reason="slow_disk"}': rising(120)},
        {
            'warpdrive_cache_dropped_total{reason="slow_disk"}': rising(6),
            'warpdrive_cache_dropped_total{reason="retained"}': rising(6000),
        },
    ),
    "WarpDriveCacheThrashing": (
        {
            "warpdrive_cache_miss_total": rising(900),
            "warpdrive_cache_hit_total": rising(100),
            "warpdrive_cache_evictions_total": rising(900),
            "warpdrive_cache_fetch_bytes_total": rising(9e8),
        },
        # A first pass misses everything and evicts nothing.
        {
            "warpdrive_cache_miss_total": rising(900),
            "warpdrive_cache_hit_total": rising(0),
            "warpdrive_cache_evictions_total": rising(0),
            "warpdrive_cache_fetch_bytes_total": rising(9e8),
        },
    ),
    "WarpDriveReadaheadWasted": (
        {
            "warpdrive_readahead_wasted_total": rising(90),
            "warpdrive_readahead_hit_total": rising(10),
            "warpdrive_readahead_bytes_total": rising(1e8),
        },
        {
            "warpdrive_readahead_wasted_total": rising(10),
            "warpdrive_readahead_hit_total": rising(90),
            "warpdrive_readahead_bytes_total": rising(1e8),
        },
    ),
    "WarpDriveReadersWait": (
        histogram("warpdrive_cache_wait_seconds", 5),
        histogram("warpdrive_cache_wait_seconds", 0.1),
    ),
    "WarpDriveNoPassthrough": (
        {
            'warpdrive_fuse_opens_total{mode="passthrough",reason="registered"}': rising(1),
            'warpdrive_fuse_opens_total{mode="cached",reason="refused"}': rising(99),
            "warpdrive_cache_files": constant(100),
        },
        # Nothing lies whole yet.
        {
            'warpdrive_fuse_opens_total{mode="passthrough",reason="registered"}': rising(0),
            'warpdrive_fuse_opens_total{mode="cached",reason="incomplete"}': rising(99),
            "warpdrive_cache_files": constant(0),
        },
    ),
    "WarpDriveMemoryOverBound": (
        {"process_resident_memory_bytes": constant(6e8), "warpdrive_memory_bound_bytes": constant(5e8)},
        {"process_resident_memory_bytes": constant(4e8), "warpdrive_memory_bound_bytes": constant(5e8)},
    ),
    "WarpDriveMemoryShort": (
        {"warpdrive_memory_leased_bytes": constant(99), "warpdrive_memory_lease_bound_bytes": constant(100)},
        {"warpdrive_memory_leased_bytes": BURST, "warpdrive_memory_lease_bound_bytes": constant(100)},
    ),
    "WarpDriveVersionsDiffer": (
        {
            'warpdrive_build_info{version="1.0.0"}': f"1+0x{30 * 60}",
            'warpdrive_build_info{version="1.1.0"}': f"1+0x{30 * 60}",
        },
        {'warpdrive_build_info{version="1.0.0"}': f"1+0x{30 * 60}"},
    ),
    "WarpDriveWebhookErrors": (
        {'warpdrive_webhook_requests_total{outcome="refused"}': rising(1)},
        {'warpdrive_webhook_requests_total{outcome="denied"}': rising(10)},
    ),
    "WarpDriveWebhookCertificateExpires": (
        # The clock of a case begins at 0.
        {"warpdrive_webhook_certificate_expiry_timestamp_seconds": constant(86400)},
        {"warpdrive_webhook_certificate_expiry_timestamp_seconds": constant(30 * 86400)},
    ),
    "WarpDriveWebhookNotTrusted": (
        {
            "warpdrive_webhook_configuration_valid": constant(0),
            "warpdrive_webhook_authority_expiry_timestamp_seconds": constant(2e9),
        },
        # Somebody else's certificate.
        {
            "warpdrive_webhook_configuration_valid": constant(0),
            "warpdrive_webhook_authority_expiry_timestamp_seconds": constant(0),
        },
    ),
    "WarpDriveWebhookSettingsInvalid": (
        {"warpdrive_webhook_settings_valid": constant(0)},
        {"warpdrive_webhook_settings_valid": constant(1)},
    ),
    "WarpDriveWebhookCannotReachCluster": (
        {"warpdrive_webhook_kubernetes_errors_total": rising(1)},
        {"warpdrive_webhook_kubernetes_errors_total": BURST},
    ),
    "WarpDriveWebhookSlow": (
        histogram("warpdrive_webhook_request_duration_seconds", 2.5),
        histogram("warpdrive_webhook_request_duration_seconds", 0.01),
    ),
    "WarpDriveNodeNotRegistered": (
        {"warpdrive_csi_registered": constant(0)},
        {"warpdrive_csi_registered": constant(1)},
    ),
    "WarpDriveNodePublishFails": (
        {'warpdrive_csi_calls_total{call="publish",outcome="failed"}': rising(1)},
        {'warpdrive_csi_calls_total{call="publish",outcome="refused"}': rising(10)},
    ),
    "WarpDriveNodeHolderDied": (
        {"warpdrive_csi_holder_deaths_total": f"0+0x{AT - 5} 1+0x10"},
        {"warpdrive_csi_holder_deaths_total": constant(4)},
    ),
}

# Minutes after which a case is looked at, where not AT.
LATER = {"WarpDriveVersionsDiffer": 26 * 60, "WarpDriveNoPassthrough": 120, "WarpDriveCacheThrashing": 80,
         "WarpDriveReadaheadWasted": 80}
