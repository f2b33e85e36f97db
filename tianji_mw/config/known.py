"""The keys of LiteLLM's and the Go port's configuration that are not implemented yet, per block, and OpenAI's params.

Data only. A key moves out of here when it becomes a field of a model; a key in neither place is "unknown".
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_COSTS: Final = """
    cache_read_input_token_cost cache_creation_input_token_cost
    input_cost_per_second output_cost_per_second input_cost_per_character output_cost_per_character
    output_cost_per_image input_cost_per_image input_cost_per_audio_token output_cost_per_audio_token
    output_cost_per_reasoning_token input_cost_per_query
"""

#: Keys of secret managers; `managed.py` takes them out of the tree before it is validated.
MANAGER_ROOT_KEYS: Final = _names("secret_managers secret_manager")
MANAGER_SWITCHES: Final[Mapping[str, str]] = MappingProxyType(
    {"use_azure_key_vault": "azure_key_vault", "use_google_kms": "google_kms"}
)
MANAGER_GENERAL_KEYS: Final = (
    _names("key_management_system key_management_settings secret_manager secret_cache") | MANAGER_SWITCHES.keys()
)

#: Block -> keys that are read by the reference implementations and not yet by this one.
NOT_IMPLEMENTED: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "root": _names("""
            prompts mcp_servers mcp_tools vector_store_registry search_tools assistant_settings
            files_settings finetune_settings teams prompt_management policies
            policy_attachments pass_through_endpoints discord_webhook_url
            ratelimit_alert_threshold agent_list model_group_settings worker_registry
        """),
        "model_list": _names("access_control"),
        "params": _names(f"""
            mirror_percent use_in_pass_through use_litellm_proxy
            model_info merge_reasoning_content_in_choices max_file_size_mb strict_params
            allow_fail_open prompt_id prompt_variables cache fallbacks context_window_fallbacks
            configurable_clientside_auth_params cache_control_injection_points litellm_trace_id no-log
            litellm_system_prompt auto_router_config auto_router_config_path auto_router_default_model
            auto_router_embedding_model mock_testing_fallbacks rpd tpd {_COSTS}
        """),
        "model_info": _names(f"""
            max_output_tokens health_check_voice
            supports_vision supports_function_calling supports_tool_choice
            supports_parallel_function_calling supports_response_schema supports_system_messages
            supports_prompt_caching supports_reasoning supports_audio_input supports_audio_output supports_pdf_input
            supports_web_search supports_url_context supports_computer_use
            supports_embedding_image_input supported_openai_params litellm_provider tier description version
            db_model created_at updated_at created_by updated_by direct_access blocked {_COSTS}
        """),
        "settings": _names("""
            modify_params service_callback service_callbacks audit_log_callbacks batch_line_item_callbacks
            s3_audit_callback_params generic_api_use_v1 cold_storage_custom_logger disable_streaming_logging
            max_budget budget_duration max_internal_user_budget internal_user_budget_duration
            default_internal_user_params default_team_params upperbound_key_generate_params
            default_key_generate_params key_generation_settings cost_discount_config
            cost_margin_config force_ipv4 enable_json_schema_validation budget_exceeded_status_code guardrails
            ssl_certificate ssl_security_level default_max_internal_user_budget max_end_user_budget
            max_ui_session_budget langfuse_default_tags


            store_audit_logs disable_token_counter disable_copilot_system_to_assistant
            disable_add_prefix_to_prompt
            disable_hf_tokenizer_download enable_loadbalancing_on_batch_endpoints public_model_groups
            public_model_groups_links drop_params_list suppress_debug_info telemetry
            include_cost_in_streaming_usage global_prompt_directory
            disable_end_user_cost_tracking
            credential_list custom_provider_map user_url_validation
            secret_manager prompt_management default_redis_batch_cache_expiry mcp_aliases reasoning_auto_summary
        """),
        "router_settings": _names("""
            tag_routing_prefix polling_interval cache_responses client_ttl
            ignore_invalid_deployments fallback_on_unsupported_params set_verbose debug_level alerting_config
            assistants_config search_tools guardrail_list
        """),
        "general_settings": _names("""
            database_url database_connection_pool_limit database_connection_timeout store_model_in_db
            custom_auth
            custom_key_generate custom_sso enable_jwt_auth litellm_jwtauth user_api_key_cache_ttl
            allow_requests_on_db_unavailable enforce_user_param allowed_routes
            public_routes admin_only_routes allowed_ips use_x_forwarded_for max_parallel_requests
            global_max_parallel_requests infer_model_from_keys use_shared_health_check disable_spend_logs
            disable_spend_updates disable_error_logs store_prompts_in_spend_logs maximum_spend_logs_retention_period
            maximum_spend_logs_retention_interval proxy_batch_write_at proxy_budget_rescheduler_min_time
            proxy_budget_rescheduler_max_time use_redis_transaction_buffer
            spend_report_frequency pass_through_endpoints
            completion_model moderation_model embedding_model image_generation_model default_team_disabled
            forward_client_headers_to_llm_api forward_openai_org_id token_rate_limit_type user_header_name
            user_header_mappings always_include_stream_usage_models disable_adding_master_key_hash_to_db
            disable_responses_id_security disable_reset_budget disable_retry_on_max_parallel_request_limit_error
            disable_prisma_schema_update disable_master_key_return enable_oauth2_auth enable_oauth2_proxy_auth
            oauth2_config_mappings ui_access_mode allow_user_auth allow_client_side_credentials
            supported_db_objects max_response_body_log_size control_plane_url role_permissions
            enable_public_model_hub public_model_hub_requires_auth on_unresolved on_invalid_guardrail
            prompt_management sso_client_id sso_client_secret
            sso_issuer_url sso_redirect_uri sso_scopes sso_role_mapping discord_webhook_url
            ratelimit_alert_threshold enforced_params cost_tracking_settings search_tools require_end_user_mcp
        """),
        "credential_list": frozenset(),
        "guardrails": _names("guardrail_id guardrail_info policy_template"),
        "virtual_keys": _names("""
            duration aliases spend max_budget soft_budget budget_duration budget_limits budget_id
            project_id agent_id max_parallel_requests tpm_limit rpm_limit tpd_limit tpm_limit_type rpm_limit_type
            model_max_budget model_rpm_limit model_tpm_limit policies prompts
            enforced_params allowed_routes permissions object_permission config
            router_settings blocked auto_rotate rotation_interval key_type
    access_group_ids end_user_budget_id
            throttle_on_budget_exceeded team_alias user_email user_role end_user_id
        """),
    }
)

#: Those of them that limit access, spending, load or what is logged: without effect they leave open what the operator
#: closed, so their notice says so.
RESTRICTIONS: Final = _names("""
    custom_auth enable_jwt_auth enable_oauth2_auth enable_oauth2_proxy_auth enforce_user_param allowed_routes
    admin_only_routes allowed_ips max_parallel_requests global_max_parallel_requests
    access_control access_groups max_budget soft_budget budget_limits budget_id
    max_internal_user_budget max_end_user_budget
    default_max_internal_user_budget upperbound_key_generate_params
    duration tpm_limit rpm_limit tpd_limit model_max_budget model_rpm_limit model_tpm_limit policies
    policy_attachments enforced_params permissions object_permission blocked key_type
    access_group_ids end_user_budget_id
    role_permissions
""")

#: Callbacks of LiteLLM that this suite has no destination for; they are left out, with a notice.
CALLBACKS_LATER: Final = _names("""
    sentry posthog lunary logfire opik argilla galileo literalai lago openmeter supabase humanloop athina promptlayer
    traceloop levo agentops deepeval cloudzero vantage focus azure_sentinel datadog_cost_management prometheus_system
    dynamic_rate_limiter dynamic_rate_limiter_v3 parallel_request_limiter batch_redis_requests greenscale gitlab
    rubrik sumologic qualifire_eval ramp
    dotprompt bitbucket anthropic_cache_control_hook vector_store_pre_call_hook websearch_interception
""")

#: Params of OpenAI's APIs; in `params` they are defaults for the deployment.
OPENAI_PARAMS: Final = _names("""
    temperature top_p n stream stream_options stop max_tokens max_completion_tokens presence_penalty
    frequency_penalty logit_bias user seed tools tool_choice parallel_tool_calls functions function_call
    response_format logprobs top_logprobs modalities prediction audio service_tier store metadata
    reasoning_effort reasoning verbosity web_search_options safety_identifier prompt_cache_key
    prompt_cache_retention suffix echo best_of dimensions encoding_format input_type size quality style
    background moderation output_format output_compression voice speed instructions language
    timestamp_granularities include truncation text max_output_tokens max_tool_calls thinking
""")
#: Those of them that are numbers or switches, so that a value from a variable gets its type.
NUMERIC_PARAMS: Final = _names("""
    temperature top_p n max_tokens max_completion_tokens presence_penalty frequency_penalty seed top_logprobs best_of
    dimensions speed output_compression max_output_tokens max_tool_calls
""")
SWITCH_PARAMS: Final = _names("stream parallel_tool_calls store echo")

#: Keys only a provider reads; they go to `params.extra` without remark.
PROVIDER_PARAMS: Final = _names("""
    vertex_project vertex_location vertex_credentials vertex_ai_project vertex_ai_location vertex_ai_credentials
    aws_access_key_id aws_secret_access_key aws_session_token aws_region_name aws_session_name aws_profile_name
    aws_role_name aws_web_identity_token aws_sts_endpoint aws_external_id aws_bedrock_runtime_endpoint
    aws_sagemaker_allow_zero_temp s3_bucket_name s3_encryption_key_id gcs_bucket_name
    model_id hf_model_name project_id space_id deployment_id watsonx_region_name token zen_api_key
    use_private_endpoint azure_ad_token_provider azure_username azure_password
    guardrailConfig performanceConfig safety_settings top_k top_a min_p repetition_penalty
    guided_json guided_regex guided_choice guided_grammar safe_prompt num_ctx num_predict keep_alive
    provider transforms models route plugins
""")

#: Keys of `router_settings` that LiteLLM also reads in `litellm_settings`, and in `general_settings`; the loader puts
#: them into the first.
SHARED_ROUTER_KEYS: Final = _names("""
    num_retries allowed_fails cooldown_time fallbacks context_window_fallbacks content_policy_fallbacks
    default_fallbacks stream_timeout model_group_alias tag_budget_config
""")
HEALTH_ROUTER_KEYS: Final = _names("""
    enable_health_check_routing health_check_staleness_threshold health_check_ignore_transient_errors
""")
#: Keys of `router_settings` that say where the shared state is; without the prefix they are our fields.
REDIS_KEYS: Final = _names("""
    redis_url redis_host redis_port redis_username redis_password redis_db redis_ssl redis_startup_nodes
    redis_sentinel_nodes redis_sentinel_username redis_sentinel_password redis_service_name
""")
#: Values of `optional_pre_call_checks` that are known and not implemented.
CHECKS_LATER: Final = _names("forward_client_headers_by_model_group")

#: Values of `routing_strategy` -> the file in `tianji_mw/routing/`; and those that are known and not implemented.
STRATEGIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "adaptive": "adaptive",
        "p2c-ewma": "adaptive",
        "simple-shuffle": "shuffle",
        "shuffle": "shuffle",
        "weighted": "shuffle",
        "provider-budget-routing": "shuffle",  # budgets hold with every strategy
        "least-busy": "least_busy",
        "latency-based-routing": "latency",
        "lowest-latency": "latency",
        "cost-based-routing": "cost",
        "lowest-cost": "cost",
        "usage-based-routing": "usage",
        "usage-based-routing-v2": "usage",
        "usage-based": "usage",
        "lowest-tpm-rpm": "usage",
    }
)
STRATEGIES_LATER: Final = _names("priority complexity-router quality-router adaptive-router auto-router")
#: Values of `model_info.mode`.
MODES: Final = _names("""
    chat completion embedding image_generation image_edit audio_speech audio_transcription rerank moderation responses
    realtime batch ocr video_generation search vector_store
""")
#: Values of a guardrail's `mode`.
GUARDRAIL_MODES: Final = _names("""
    pre_call during_call post_call logging_only pre_mcp_call during_mcp_call post_mcp_call realtime_input_transcription
""")
