// Package registration writes intents as SPIRE registration entries.
//
// A workload's entry is parented to the agent of one node: of a node to which a pod of the workload's service account is bound and
// which meets what the identity asks (trustgraph.Identity.Nodes). SPIRE's server lets an agent issue what is parented to it and
// takes the agent's word for the workload, so no other machine can be issued the identity.
//
// SPIRE selectors know no "or": alternatives (verifiers, digests) are multiplied out, and trustgraph bounds them.
//
// The ID of an entry is a hash of what it is for: the identity, the agent and the alternative. What the requirement resolves to
// (which reference sets there are, which tags) is no part of it, so none of that re-creates an entry, and a requirement that
// becomes looser or tighter changes entries where they are.
package registration

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"

	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// Render makes every SPIRE entry that should exist, sorted by ID.
func Render(in desired.Intents) []snapshot.Entry {
	var out []snapshot.Entry
	for _, id := range in.Identities {
		wants, _ := Of(in.Config, id)
		out = append(out, wants...)
	}
	slices.SortFunc(out, func(a, b snapshot.Entry) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Keep makes the entries that may stay where they exist and are not made otherwise, sorted by ID: those of nodes on hold.
func Keep(in desired.Intents) []snapshot.Entry {
	var out []snapshot.Entry
	for _, id := range in.Identities {
		_, keeps := Of(in.Config, id)
		out = append(out, keeps...)
	}
	slices.SortFunc(out, func(a, b snapshot.Entry) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Of makes the entries of one identity: those that should exist, and those that may stay where they
// exist. Neither is sorted.
func Of(c snapshot.Config, id trustgraph.Identity) (wants, keeps []snapshot.Entry) {
	if id.Problem != "" {
		return nil, nil
	}
	for _, n := range id.Nodes {
		if n.Held {
			keeps = append(keeps, entries(c, id, n.AgentID)...)
		} else {
			wants = append(wants, entries(c, id, n.AgentID)...)
		}
	}
	return wants, keeps
}

// IsClass reports whether the entry stands for a class of nodes and not for a workload. Earlier versions made such entries.
func IsClass(e snapshot.Entry) bool {
	_, path, _ := strings.Cut(strings.TrimPrefix(e.ParentID, "spiffe://"), "/")
	return path == "spire/server"
}

func digest(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(strconv.Itoa(len(p)) + ":" + p) // lengths keep ("a","bc") apart from ("ab","c")
	}
	sum := sha256.Sum256([]byte(b.String()))
	return hex.EncodeToString(sum[:16])
}

// entries are those of one identity under one agent.
func entries(c snapshot.Config, id trustgraph.Identity, agent string) []snapshot.Entry {
	base := []snapshot.Selector{
		workload(workloadclaim.KindNamespace, id.Namespace),
		workload(workloadclaim.KindServiceAccount, id.ServiceAccount),
	}
	switch {
	case id.Restricted:
		base = append(base, workload(workloadclaim.KindRuntime, workloadclaim.RuntimeRestricted))
	case id.Baseline:
		base = append(base, workload(workloadclaim.KindRuntime, workloadclaim.RuntimeBaseline))
	}
	digests := id.Digests
	if len(digests) == 0 {
		digests = []string{""}
	}
	spiffeID := trustgraph.SPIFFEID(c.TrustDomain, id.Namespace, id.ServiceAccount)
	var out []snapshot.Entry
	for _, verifiers := range id.Verifiers {
		for _, d := range digests {
			selectors := slices.Clone(base)
			for _, v := range verifiers {
				selectors = append(selectors, workload(workloadclaim.KindSignedBy, v))
			}
			if d != "" {
				selectors = append(selectors, workload(workloadclaim.KindImageManifest, d))
			}
			slices.SortFunc(selectors, compareSelectors)
			out = append(out, snapshot.Entry{
				ID:       entryID(c.ClusterName, spiffeID, agent, digest(verifiers...), d),
				SPIFFEID: spiffeID, ParentID: agent, Selectors: slices.Compact(selectors), X509SVIDTTL: c.X509SVIDTTL,
			})
		}
	}
	return out
}

func workload(kind workloadclaim.Kind, value string) snapshot.Selector {
	return snapshot.Selector{Type: workloadclaim.SelectorType, Value: string(kind) + ":" + value}
}

// entryID names an entry by what it is for. SPIRE allows letters, digits, "-", "." and "_" in an entry ID, at most 255
// (pkg/server/datastore/sqlstore, v1.15.3); a cluster's name has at most 63.
func entryID(cluster, spiffeID, agent, verifiers, manifest string) string {
	return snapshot.WorkloadEntryPrefix(cluster) + digest(cluster, spiffeID, agent, verifiers, manifest)
}

func compareSelectors(a, b snapshot.Selector) int {
	return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Value, b.Value))
}
