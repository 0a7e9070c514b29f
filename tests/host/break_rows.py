"""What each host check guards, and how to break it: the list that breaks.py goes through."""

from __future__ import annotations

from dataclasses import replace

from breaking import (
    NGINX,
    RELOAD,
    RESTART,
    Break,
    append,
    bring_back,
    gone,
    in_backend,
    in_file,
    in_nginx,
    in_unit,
)  # fmt: skip

VLLM = "millrace-vllm@main"
ENGINE = "/etc/millrace/vllm/main.yaml"
ENGINE_AGAIN = f"systemctl restart {VLLM}"
APT = "/etc/apt/apt.conf.d/52millrace"
KEY = "/etc/millrace/backend/gateway_key"
SETTINGS = "/etc/millrace/backend/settings.json"
SECRETS = "test_secrets.py::test_secrets_are_in_no_"
# What the journal took cannot be taken out of it, so that it is moved on and its past let go of.
OUT_OF_THE_JOURNAL = "journalctl --rotate; sleep 2; journalctl --vacuum-time=1s"
OPENED = "nft add rule inet millrace input tcp dport 9999 accept"
LOADED = "systemctl reload millrace-firewall"
NFTABLES = "/etc/systemd/system/nftables.service.d/millrace.conf"
DROP_IN = "/etc/ssh/sshd_config.d/00-millrace.conf"
SYSCTL = "/etc/sysctl.d/99-zz-millrace.conf"
TRIAL = "/usr/local/lib/millrace/trial.py"
EXPRESS = "test_express.py::test_"
NO_HOOK = "Environment=LITELLM_WORKER_STARTUP_HOOKS="
BUFFERS = "s/proxy_buffering off/proxy_buffering on/"
OPEN_METRICS = (
    "s#location = /healthz {#location = /metrics { return 200; }\\nlocation = /healthz {#"
)
OLD_TLS = (
    "s/ssl_protocols .*/ssl_protocols TLSv1 TLSv1.1 TLSv1.2;/",
    "s/ssl_ciphers .*/ssl_ciphers ALL:@SECLEVEL=0;/",
)
ALL_CAPABILITIES = "CapabilityBoundingSet=~\\nSystemCallFilter="
EXPOSED = f"{ALL_CAPABILITIES}\\nPrivateDevices=no"

LENIENT = """
import http.server, ssl

class Lenient(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_):
        pass

context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain("/etc/millrace/tls/server.crt", "/etc/millrace/tls/server.key")
server = http.server.ThreadingHTTPServer(("", 443), Lenient)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()"""


def lenient(test: str) -> Break:
    """A server in nginx's place that knows no lengths: a body is the next request."""
    return Break(
        test,
        "another server, which skips no body",
        f"cat > /run/break.py <<'END'\n{LENIENT}\nEND\nsystemctl stop nginx && systemd-run -q "
        "--unit=break-edge python3 /run/break.py && sleep 1",
        "systemctl stop break-edge; rm /run/break.py; systemctl start nginx",
    )


def then_idle(row: Break) -> Break:
    """The same, and an engine that is at work for nobody afterwards."""
    return replace(row, undo=f"{row.undo}; {ENGINE_AGAIN}")


def trial(test: str, name: str) -> Break:
    """A trial that nobody takes back; the mend comes by the connection that is open, or by itself."""
    row = in_file(
        test, "the timer's program does nothing", TRIAL, "s/if undo(arguments.1.):/if False:/"
    )
    mend = (
        f"{bring_back(TRIAL)}; python3 {TRIAL} undo {name}; "
        f"rm -f /var/lib/millrace/trials/{name}.undone"
    )
    timer = "systemd-run -q --collect --unit=break-way-back --on-active=180"
    return replace(
        row,
        do=f"{row.do} && {timer} sh -c '{mend}'",
        undo=f"systemctl stop break-way-back.timer; {mend}",
    )


def secret_in_environment(test: str) -> Break:
    """The gateway's key among what the backend's process is started with."""
    told = "the gateway's key in an environment"
    row = in_unit(test, told, "millrace-backend@*", "EnvironmentFile=/root/env")
    return replace(
        row,
        do=f"printf 'A=%s\\n' $(cat {KEY}) > /root/env && {row.do}",
        undo=f"rm /root/env; {row.undo}",
    )


SYSTEM = [
    *(Break(f"test_firewall.py::{test}", "a port opened by hand", OPENED, LOADED) for test in (
        "test_the_whole_table_is_what_was_rendered",
        "test_nothing_more_is_opened_than_the_edge_and_ssh",
        "test_from_outside_the_edge_answers_and_nothing_else")),
    gone("test_firewall.py::test_other_tables_stay_and_ours_outlives_the_distributions_unit",
         "nothing added to the distribution's unit", NFTABLES,
         f"systemctl daemon-reload; systemctl stop nftables; {LOADED}"),
    trial("test_firewall.py::test_what_shuts_us_out_is_taken_back_by_the_server", "firewall"),
    *(gone(f"test_ssh.py::{test}", "the distribution's sshd", DROP_IN, "systemctl reload ssh; sleep 1")
      for test in ("test_ssh_audit_finds_nothing", "test_nobody_comes_in_without_a_key")),
    trial("test_ssh.py::test_what_shuts_us_out_is_taken_back_and_sessions_live_on", "ssh"),
    Break("test_base.py::test_time_zone", "another zone", "timedatectl set-timezone UTC",
          "timedatectl set-timezone Europe/London"),
    gone("test_base.py::test_journal_is_bounded_and_kept", "bounds taken out",
         "/etc/systemd/journald.conf.d/millrace.conf"),
    in_file("test_base.py::test_security_updates_come_by_themselves", "periodic upgrade off", APT,
            "s/Unattended-Upgrade \"1\"/Unattended-Upgrade \"0\"/"),
    in_file("test_base.py::test_security_updates_come_by_themselves", "it may reboot by itself", APT,
            "s/Automatic-Reboot \"false\"/Automatic-Reboot \"true\"/"),
    Break("test_base.py::test_security_updates_come_by_themselves", "no security among its origins",
          "echo '#clear Unattended-Upgrade::Origins-Pattern;' > /etc/apt/apt.conf.d/99break",
          "rm /etc/apt/apt.conf.d/99break"),
    Break("test_base.py::test_service_users_cannot_log_in", "a shell for a service user",
          "usermod -s /bin/bash millrace-litellm", "usermod -s /usr/sbin/nologin millrace-litellm"),
    gone("test_base.py::test_the_plan_is_on_the_server", "plan removed", "/etc/millrace/plan.json"),
    Break("test_hardening.py::test_the_kernel_was_told_and_holds_what_is_this_servers",
          "redirects taken", "sysctl -qw net.ipv4.conf.all.accept_redirects=1",
          "sysctl -qw net.ipv4.conf.all.accept_redirects=0"),
    Break("test_hardening.py::test_systemd_reads_every_line_of_it", "a line that is none",
          append(SYSCTL, "nonsense"), bring_back(SYSCTL)),
    gone("test_hardening.py::test_what_nobody_needs_is_never_loaded", "the list taken out",
         "/etc/modprobe.d/millrace-hardening.conf"),
    Break("test_hardening.py::test_cards_and_the_boot_partition_are_not_among_it", "vfat is",
          "echo 'install vfat /bin/false' > /etc/modprobe.d/break.conf", "rm /etc/modprobe.d/break.conf"),
    *(gone("test_hardening.py::test_systemd_and_sessions_leave_no_memory_behind", told,
           f"/etc/{file}") for told, file in (
        ("units may dump", "systemd/system.conf.d/millrace.conf"),
        ("dumps are kept", "systemd/coredump.conf.d/millrace.conf"),
        ("sessions may dump", "security/limits.d/millrace.conf"))),
    Break("test_hardening.py::test_one_clock_is_kept", "none is",
          "systemctl -q disable systemd-timesyncd", "systemctl -q enable systemd-timesyncd"),
]  # fmt: skip

UNITS = [
    Break("test_units.py::test_runs_now_and_after_a_boot", "gateway not enabled",
          "systemctl disable millrace-litellm", "systemctl enable millrace-litellm"),
    in_unit("test_units.py::test_never_gives_up", "a start limit", "millrace-backend@*",
            "[Unit]\\nStartLimitIntervalSec=10", restart=False),
    in_unit("test_units.py::test_sandbox", "privileges allowed", "millrace-litellm",
            "NoNewPrivileges=no\\nPrivateTmp=no", restart=False),
    *(in_unit("test_units.py::test_sandbox", f"devices in reach of {unit}", unit, "PrivateDevices=no",
              restart=False) for unit in ("nginx", VLLM)),
    *(in_unit("test_units.py::test_exposure", f"{unit}: all capabilities", unit, EXPOSED, restart=False)
      for unit in ("millrace-backend@*", "millrace-litellm", VLLM, "nginx")),
    in_unit("test_units.py::test_not_root", "runs as root", "millrace-backend@*", "User=root"),
    in_unit("test_units.py::test_no_unit_leaves_its_memory_behind", "dumps allowed",
            "millrace-backend@*", "LimitCORE=infinity"),
    in_unit("test_units.py::test_what_a_unit_has_written_it_cannot_run", "all of it may be run",
            "millrace-backend@*", "NoExecPaths=\\nExecPaths="),
    in_unit("test_units.py::test_systemd_analyze_has_nothing_to_say", "a key systemd does not know",
            "millrace-backend@*", "MillraceNonsense=1", restart=False),
    in_unit("test_units.py::test_the_check_is_confined_as_well", "all capabilities",
            "millrace-streamcheck", EXPOSED, restart=False),
    in_unit("test_units.py::test_the_guard_is_confined_as_well_and_content", "all capabilities",
            "millrace-guard@main", ALL_CAPABILITIES, restart=False),
    Break("test_units.py::test_the_guard_is_confined_as_well_and_content", "a report of root's own",
          "chmod 700 /run/millrace/hardware", "chmod 755 /run/millrace/hardware"),
    Break("test_units.py::test_only_the_edge_listens_outside", "something listens on 9999",
          "systemd-run --unit=break-listen python3 -m http.server 9999; sleep 1",
          "systemctl stop break-listen"),
    Break("test_units.py::test_releases_are_side_by_side", "current is a folder of its own",
          "mv /opt/millrace/litellm/current /root/; mkdir /opt/millrace/litellm/current",
          "rmdir /opt/millrace/litellm/current; mv /root/current /opt/millrace/litellm/"),
]  # fmt: skip

KEPT_SECRET = [
    secret_in_environment(f"{SECRETS}argument_no_environment_and_no_journal"),
    Break(f"{SECRETS}argument_no_environment_and_no_journal", "a key as an argument",
          f"systemd-run -q --unit=break-argument -p StandardInput=file:{KEY} bash -c 'read k; exec -a "
          "break$k sleep 600'; sleep 1", "systemctl stop break-argument"),
    Break(f"{SECRETS}argument_no_environment_and_no_journal", "a key in the journal",
          f"cat {KEY} | systemd-cat -t break", OUT_OF_THE_JOURNAL),
    Break("test_secrets.py::test_each_service_reads_its_own_and_nobody_anothers", "key file readable by all",
          f"chmod 0644 {KEY}", f"chmod 0600 {KEY}"),
    Break("test_secrets.py::test_each_service_reads_its_own_and_nobody_anothers", "the session's secret is the engine's too",
          "install -m 0640 -g millrace-vllm /etc/millrace/backend/session_secret /opt/break",
          "rm /opt/break"),
    Break("test_secrets.py::test_private_keys_are_roots_alone", "nginx's workers read the key",
          "chgrp www-data /etc/millrace/tls/server.key; chmod 0640 /etc/millrace/tls/server.key",
          "chgrp root /etc/millrace/tls/server.key; chmod 0600 /etc/millrace/tls/server.key"),
    Break("test_secrets.py::test_what_each_reads_comes_to_it", "gateway stopped",
          "systemctl stop millrace-litellm", "systemctl start millrace-litellm"),
    Break("test_secrets.py::test_no_other_secret_reaches_the_server", "a client's key does",
          "true", "true", brings="client_owner"),
    Break("test_secrets.py::test_they_lie_where_they_are_configured_and_nowhere_else", "a copy left over",
          f"install -m 0600 {KEY} /var/tmp/break", "rm /var/tmp/break"),
    Break("test_secrets.py::test_the_controllers_folder_is_its_owners_alone", "a key that all may read",
          "chmod 0644 $SECRETS/client_owner", "chmod 0600 $SECRETS/client_owner", here=True),
    Break("test_secrets.py::test_no_secret_is_in_the_repository_or_left_by_ansible", "a key left there",
          "mkdir -p artefacts && install -m 0600 $SECRETS/client_owner artefacts/break",
          "rm artefacts/break", here=True),
    in_file("test_secrets.py::test_engine_and_gateway_ask_whoever_is_on_the_server_for_a_key",
            "an engine without a key", ENGINE, "/^api-key/d", then=ENGINE_AGAIN),
    replace(in_file("test_secrets.py::test_a_run_that_writes_them_all_tells_none", "one task is not silent",
                    "roles/litellm/tasks/configure.yml", "/no_log: true/d"), here=True),
    in_unit("test_secrets.py::test_the_gateway_shows_no_documents", "it does", "millrace-litellm",
            "Environment=NO_DOCS=False NO_REDOC=False NO_OPENAPI=False"),
]  # fmt: skip

EDGE = [
    in_nginx("test_edge.py::test_other_names_are_closed_on_without_a_word", "whoever asks is answered",
             "s/return 444;/return 200;/"),
    in_nginx("test_edge.py::test_other_names_are_closed_on_without_a_word", "a certificate for any name",
             "s/ssl_reject_handshake on;//"),
    in_nginx("test_edge.py::test_methods_and_spellings_that_are_not_on_the_list", "any method will do",
             "s/$method_allowed = \"\"/$method_allowed = \"x\"/"),
    in_nginx("test_edge.py::test_methods_and_spellings_that_are_not_on_the_list", "any spelling will do",
             "s/map $request_uri $path_sent/map $uri $path_sent/"),
    in_nginx("test_edge.py::test_methods_and_spellings_that_are_not_on_the_list", "no list of paths",
             "s/$methods = \"\"/$methods = \"x\"/"),
    lenient("test_edge.py::test_what_can_be_read_in_two_ways_is_refused"),
    in_nginx("test_edge.py::test_nobody_is_believed_about_his_address", "X-Forwarded-For is believed",
             "s#keepalive_timeout#set_real_ip_from 0.0.0.0/0; real_ip_header X-Forwarded-For; keepalive_timeout#"),
    in_nginx("test_edge.py::test_nobody_is_believed_about_his_address", "CF-Connecting-IP is believed",
             "s#keepalive_timeout#set_real_ip_from 0.0.0.0/0; real_ip_header CF-Connecting-IP; keepalive_timeout#"),
    in_nginx("test_edge.py::test_nobody_is_believed_about_his_address", "queries in the log",
             "s/$request_method $uri/$request_method $request_uri/"),
    in_nginx("test_edge.py::test_one_address_gets_so_much_and_this_server_all", "as many streams as it likes",
             "/limit_conn at_once/d"),
    in_nginx("test_edge.py::test_one_address_gets_so_much_and_this_server_all", "as many requests as it likes",
             "/limit_req zone=requests/d"),
    in_nginx("test_edge.py::test_nothing_is_held_back_as_nginx_has_it", "nginx buffers", BUFFERS),
    in_nginx("test_edge.py::test_nothing_is_held_back_as_nginx_has_it", "one path alone is buffered",
             "s#location /v1/chat/streams {#& proxy_buffering on;#"),
    in_nginx("test_edge.py::test_nothing_is_held_back_as_nginx_has_it", "the backend may have it buffered",
             "/proxy_ignore_headers X-Accel/d"),
    in_nginx("test_api.py::test_it_streams_event_by_event", "nginx buffers", BUFFERS),
    in_nginx("test_page.py::test_the_page_is_there_and_confined", "no policy",
             "s/add_header Content-Security-Policy.*//"),
    in_nginx("test_page.py::test_assets_are_kept_and_compressed", "nothing compressed",
             "s/gzip_static on/gzip_static off/"),
    Break("test_page.py::test_the_pages_files_are_roots_and_everybodys", "a file of somebody else's",
          "chown nobody /opt/millrace/web/current/index.html",
          "chown root /opt/millrace/web/current/index.html"),
    in_nginx("test_api.py::test_plain_http_sends_on", "port 80 says 404",
             "s/return 308.*/return 404;/"),
    in_nginx("test_api.py::test_nothing_else_is_open", "an open /metrics", OPEN_METRICS),
    in_nginx("test_api.py::test_old_tls_is_refused", "TLS 1.0 allowed", *OLD_TLS),
    in_nginx("test_api.py::test_the_edges_own_refusals_are_json", "they are pages",
             "s#default_type application/json;#default_type text/html;#"),
    in_nginx("test_api.py::test_streams_beside_each_other_are_whole", "two at once",
             "s/limit_conn at_once [0-9]*/limit_conn at_once 2/"),
    then_idle(in_backend(
        "test_api.py::test_who_leaves_a_stream_frees_the_engine", "the backend reads on for who has left",
        "answer.py", "s/leaving in done/False/", "s/{pump, leaving}/{pump}/")),
    in_nginx("test_api.py::test_metrics_are_for_this_server_alone", "an open /metrics", OPEN_METRICS),
    in_nginx("test_api.py::test_every_byte_arrives", "nginx says nothing of caches",
             "s/proxy_buffering off;/& proxy_hide_header Cache-Control;/"),
    lenient("test_outside.py::test_nothing_is_smuggled"),
    Break("test_outside.py::test_what_was_smuggled_reached_nobody", "it stands in nginx's log",
          "echo /smuggled-canary | systemd-cat -t nginx", OUT_OF_THE_JOURNAL),
    in_nginx("test_outside.py::test_nothing_is_smuggled_by_http2", "any answer is 200",
             "s#location /v1/ {#location /v1/ { return 200;#"),
    in_nginx("test_outside.py::test_no_way_round_to_what_is_inside", "an open /metrics", OPEN_METRICS),
    in_nginx("test_outside.py::test_another_name_is_told_nothing", "whoever asks is answered",
             "s/return 444;/return 200;/"),
    # From here on there must be a host outside.
    Break("test_outside.py::test_only_the_list_is_open", "a rule by hand, for nobody who listens",
          "nft insert rule inet millrace input tcp dport 9999 accept",
          "systemctl restart millrace-firewall"),
    in_nginx("test_outside.py::test_tls_has_no_hole", "TLS 1.0 allowed", *OLD_TLS),
    Break("test_outside.py::test_ssh_is_modern", "SHA-1 for messages",
          "echo 'MACs hmac-sha1' > /etc/ssh/sshd_config.d/0-break.conf; systemctl reload ssh",
          "rm /etc/ssh/sshd_config.d/0-break.conf; systemctl reload ssh"),
    in_nginx("test_outside.py::test_slow_clients_harm_nobody", "few connections a worker",
             "s/worker_connections .*/worker_connections 300;/"),
    in_nginx("test_outside.py::test_who_lies_about_their_address_is_known_all_the_same",
             "X-Forwarded-For is believed",
             "s#keepalive_timeout#set_real_ip_from 0.0.0.0/0; real_ip_header X-Forwarded-For; keepalive_timeout#"),
]  # fmt: skip

SERVICE = [
    in_nginx("test_logs.py::test_one_id_through_every_journal", "nginx hands on no id",
             "s/proxy_set_header X-Request-Id.*//"),
    in_nginx("test_logs.py::test_no_word_of_anybody_in_any_log", "nginx logs bodies",
             "s/id=$request_id/id=$request_id $request_body/"),
    Break("test_logs.py::test_no_word_of_anybody_in_any_log", "vLLM logs requests",
          f"{append(ENGINE, 'enable-log-requests: true')} && {ENGINE_AGAIN}",
          f"{bring_back(ENGINE)}; {ENGINE_AGAIN}"),
    Break("test_logs.py::test_nor_when_the_engine_dies_in_the_middle", "vLLM logs requests",
          f"{append(ENGINE, 'enable-log-requests: true')} && {ENGINE_AGAIN}",
          f"{bring_back(ENGINE)}; {ENGINE_AGAIN}"),
    in_unit("test_logs.py::test_who_left_is_in_every_journal", "LiteLLM without our hook",
            "millrace-litellm", NO_HOOK),
    Break("test_api.py::test_status_tells_of_every_hop_and_of_the_last_check", "gateway stopped",
          "systemctl stop millrace-litellm", "systemctl start millrace-litellm"),
    in_file("test_api.py::test_models", "another list", SETTINGS, "s/\"recital\"/\"other\"/",
            then=RESTART),
    in_backend("test_api.py::test_without_a_good_key_nothing", "wrong keys pass", "keys.py",
               "s/if hmac.compare_digest(.*/if True:/"),
    in_unit("test_api.py::test_who_leaves_before_a_plain_answer_frees_the_engine",
            "LiteLLM without our hook", "millrace-litellm", NO_HOOK),
    in_unit("test_api.py::test_the_engines_refusal_reaches_the_caller",
            "LiteLLM without our hook", "millrace-litellm", NO_HOOK),
    Break("test_api.py::test_alive_and_ready", "engine stopped for 70 s",
          f"systemctl stop {VLLM}; sleep 70", f"systemctl start {VLLM}"),
    in_backend("test_keys.py::test_a_session_through_nginx", "a cookie for other sites", "sessions.py",
               "s/SameSite=Strict/SameSite=Lax/"),
    *(in_unit(f"test_offline.py::test_{test}", f"{who} asks for a name", unit,
              "ExecStartPre=-/usr/bin/getent hosts example.com", restart=False) for test, who, unit in (
        ("gateway_and_backend_start_without_calling_out", "the backend", "millrace-backend@*"),
        ("gateway_and_backend_start_without_calling_out", "the gateway", "millrace-litellm"),
        ("an_engine_loads_and_streams_without_calling_out", "the engine", VLLM))),
    Break("test_streamcheck.py::test_the_timer_keeps_the_last_results", "timer stopped",
          "systemctl stop millrace-streamcheck.timer", "systemctl start millrace-streamcheck.timer"),
    in_nginx("test_streamcheck.py::test_the_healthy_chain_passes", "nginx buffers", BUFFERS),
    in_nginx("test_streamcheck.py::test_every_way_is_asked", "no HTTP/2", "s/ ssl http2/ ssl/"),
    Break("test_deploys.py::test_only_the_backends_user_opens_its_private_socket", "open to all",
          "chmod 666 /run/millrace-backend-*/private.sock",
          "chmod 600 /run/millrace-backend-*/private.sock"),
    in_nginx("test_deploys.py::test_every_stream_ends_whole", "a reload gives streams 2 s",
             "s/worker_shutdown_timeout .*/worker_shutdown_timeout 2s;/"),
    in_unit("test_deploys.py::test_every_stream_ends_whole", "an old instance is killed after 1 s",
            "millrace-backend@*", "TimeoutStopSec=1", restart=False),
]  # fmt: skip

LANE = [
    in_nginx(f"{EXPRESS}every_byte_arrives_and_is_counted", "nginx offers no engine",
             "s/offer main/offer other/"),
    # An engine that tells nothing is asked in line until the backend is started anew.
    in_file(f"{EXPRESS}every_byte_arrives_and_is_counted", "the engine is told of nobody to tell", NGINX,
            "/proxy_set_header X-Millrace-Ends/d", then=f"nginx -t -q && {RELOAD} && {RESTART}"),
    in_nginx(f"{EXPRESS}every_byte_arrives_and_is_counted", "nginx tells of no end", "/ends.sock/d"),
    in_nginx(f"{EXPRESS}nothing_is_held_back", "an engine's answers are buffered",
             "s#location @engine_main {#& proxy_buffering on;#"),
    in_nginx(f"{EXPRESS}its_head_is_the_same", "the engine's own word on caches",
             "s/add_header Cache-Control \"no-cache, no-transform\";//"),
    in_nginx(f"{EXPRESS}its_head_is_the_same", "the engine's own headers", "/proxy_hide_header/d"),
    in_nginx(f"{EXPRESS}usage_is_counted_where_the_client_asked_for_none", "nobody takes it out",
             "/proxy_set_header X-Millrace-Hide-Usage/d"),
    then_idle(in_nginx(
        f"{EXPRESS}who_leaves_frees_the_engine", "nginx reads on for who has left",
        "s#location @engine_main {#& proxy_buffering on; proxy_ignore_client_abort on; proxy_store /var/lib/nginx/break;#")),
    in_nginx(f"{EXPRESS}what_is_refused_is_refused_in_the_same_words", "the engine words it",
             "s/proxy_intercept_errors on/proxy_intercept_errors off/"),
    in_backend(f"{EXPRESS}what_takes_no_express_comes_in_line", "plain answers are handed off",
               "express/handoffs.py", "s/not (request.stream and api.has_stream_options)/False/"),
    in_nginx(f"{EXPRESS}nobody_gets_to_the_engine_by_a_name", "a name that visitors may say",
             "s#location @express_again {#location /engine_main { proxy_pass http://127.0.0.1:8001/health; }\\n&#"),
    Break(f"{EXPRESS}the_sockets_are_for_whom_they_should_be", "ends for the backend alone",
          "chmod 600 /run/millrace-backend-*/ends.sock", "chmod 666 /run/millrace-backend-*/ends.sock"),
    Break(f"{EXPRESS}the_sockets_are_for_whom_they_should_be", "a private socket for all",
          "chmod 666 /run/millrace-backend-*/private.sock",
          "chmod 600 /run/millrace-backend-*/private.sock"),
    in_nginx(f"{EXPRESS}the_stream_check_finds_every_hop_well", "an engine's answers are buffered",
             "s#location @engine_main {#& proxy_buffering on;#"),
    in_unit(f"{EXPRESS}a_hand_over_cuts_nobody", "an old instance is killed after 1 s",
            "millrace-backend@*", "TimeoutStopSec=1", restart=False),
    in_nginx(f"{EXPRESS}an_engine_that_restarts_is_waited_for_in_line", "nobody is asked again",
             "/= @express_again/d"),
    in_unit(f"{EXPRESS}the_way_there_and_back_cuts_nobody_and_is_idempotent", "a reload is a restart",
            "nginx", "ExecReload=\\nExecReload=/bin/kill -TERM $MAINPID", restart=False),
]  # fmt: skip

BREAKS = [*SYSTEM, *UNITS, *KEPT_SECRET, *EDGE, *SERVICE, *LANE]
