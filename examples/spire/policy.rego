package spire

# What SPIRE's server lets whom do: SPIRE's own policy (pkg/server/authpolicy/policy.rego and, as data.apis, policy_data.json of
# v1.15.3), but for the identities in data.entry_admins. These are administrators of entries and agents alone: they read both,
# write and delete entries of policy-sync's making, and evict agents that Keelson's node attestor let in. They mint nothing, ban
# nobody, make no join token and touch no authority, so that the theft of such an identity is not the theft of the trust domain.

result = {
  "allow": allow,
  "allow_if_admin": allow_if_admin,
  "allow_if_local": allow_if_local,
  "allow_if_downstream": allow_if_downstream,
  "allow_if_agent": allow_if_agent,
}

default allow_if_admin = false
default allow_if_downstream = false
default allow_if_local = false
default allow_if_agent = false
default allow = false

allow_if_admin = true if {
  r := data.apis[_]
  r.full_method == input.full_method
  r.allow_admin
  not entry_admin
}

allow_if_admin = true if {
  entry_admin
  entry_admin_may
}

allow_if_local = true if {
  r := data.apis[_]
  r.full_method == input.full_method
  r.allow_local
}

allow_if_downstream = true if {
  r := data.apis[_]
  r.full_method == input.full_method
  r.allow_downstream
}

allow_if_agent = true if {
  r := data.apis[_]
  r.full_method == input.full_method
  r.allow_agent
}

allow = true if {
  r := data.apis[_]
  r.full_method == input.full_method
  r.allow_any
}

entry_admin if data.entry_admins[_] == input.caller

entry_admin_may if input.full_method == "/spire.api.server.entry.v1.Entry/CountEntries"
entry_admin_may if input.full_method == "/spire.api.server.entry.v1.Entry/ListEntries"
entry_admin_may if input.full_method == "/spire.api.server.entry.v1.Entry/GetEntry"
entry_admin_may if input.full_method == "/spire.api.server.agent.v1.Agent/CountAgents"
entry_admin_may if input.full_method == "/spire.api.server.agent.v1.Agent/ListAgents"
entry_admin_may if input.full_method == "/spire.api.server.agent.v1.Agent/GetAgent"

entry_admin_may if {
  input.full_method == "/spire.api.server.entry.v1.Entry/BatchCreateEntry"
  every e in input.req.entries { workload_entry(e) }
}

entry_admin_may if {
  input.full_method == "/spire.api.server.entry.v1.Entry/BatchUpdateEntry"
  every e in input.req.entries { workload_entry(e) }
}

entry_admin_may if {
  input.full_method == "/spire.api.server.entry.v1.Entry/BatchDeleteEntry"
  every id in input.req.ids { startswith(id, "keelson.") }
}

entry_admin_may if {
  input.full_method == "/spire.api.server.agent.v1.Agent/DeleteAgent"
  startswith(input.req.id.path, "/spire/agent/keelson_tpm/")
}

# An entry as policy-sync makes them: of its own name, for a service account, under one agent that proved its machine, and with no
# rights over the server. It never gives the identity of an entry admin.
workload_entry(e) if {
  startswith(e.id, "keelson.")
  regex.match("^/ns/[^/]+/sa/[^/]+$", e.spiffe_id.path)
  not reserved(e)
  regex.match("^/spire/agent/keelson_tpm/[0-9a-f]{64}$", e.parent_id.path)
  not e.admin
  not e.downstream
  not e.store_svid
  not e.dns_names
  not e.federates_with
}

reserved(e) if data.entry_admins[_] == concat("", ["spiffe://", e.spiffe_id.trust_domain, e.spiffe_id.path])
