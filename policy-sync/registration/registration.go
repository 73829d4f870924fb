// Package registration writes intents as SPIRE registration entries.
//
// A node class is a SPIFFE ID that aliases all agents whose node meets one requirement:
// one entry per alternative (a reference set and a value for each tag), parented to the
// server. Workload entries are parented to the class, so an agent learns of a workload
// only while its own node's claims meet the requirement.
//
// SPIRE selectors know no "or" and no "any": alternatives are multiplied out (trustgraph
// bounds them), and "any reference set" has become the known ones there. Selectors are
// lower case (nodeclaim), so tag values that differ only by case are one to SPIRE; while a
// node is known that only case tells apart, trustgraph lets nothing be issued.
//
// Entry IDs are a hash of what an entry grants: a changed grant is another entry, so the
// old one goes before the new one comes.
package registration

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// ClassPath starts the SPIFFE ID path of every node class.
const ClassPath = "/keelson/nodeclass/"

// Render makes every SPIRE entry that should exist, sorted by ID.
func Render(in desired.Intents) []snapshot.Entry {
	byID := map[string]snapshot.Entry{}
	for _, id := range in.Identities {
		if id.Problem != "" {
			continue
		}
		class := classID(in.Config.TrustDomain, id)
		for _, e := range classEntries(in, id, class) {
			byID[e.ID] = e
		}
		for _, e := range workloadEntries(in, id, class) {
			byID[e.ID] = e
		}
	}
	out := make([]snapshot.Entry, 0, len(byID))
	for _, e := range byID {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b snapshot.Entry) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// IsClass reports whether the entry stands for a node class and not for a workload.
func IsClass(e snapshot.Entry) bool { return strings.HasSuffix(e.ParentID, "/spire/server") }

func digest(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(strconv.Itoa(len(p)) + ":" + p) // lengths keep ("a","bc") apart from ("ab","c")
	}
	sum := sha256.Sum256([]byte(b.String()))
	return hex.EncodeToString(sum[:16])
}

// classID is the same for equal node requirements.
func classID(trustDomain string, id trustgraph.Identity) string {
	parts := []string{"class", strings.Join(id.References, "\x00")}
	for _, key := range sortedKeys(id.Tags) {
		parts = append(parts, key, strings.Join(id.Tags[key], "\x00"))
	}
	return "spiffe://" + trustDomain + ClassPath + digest(parts...)
}

func classEntries(in desired.Intents, id trustgraph.Identity, class string) []snapshot.Entry {
	alternatives := [][]string{}
	for _, ref := range id.References {
		alternatives = append(alternatives, []string{"ref:" + strings.ToLower(ref)})
	}
	for _, key := range sortedKeys(id.Tags) {
		var next [][]string
		for _, have := range alternatives {
			for _, value := range id.Tags[key] {
				next = append(next, append(slices.Clone(have), "tag:"+strings.ToLower(key)+":"+strings.ToLower(value)))
			}
		}
		alternatives = next
	}
	var out []snapshot.Entry
	for _, values := range alternatives {
		var selectors []snapshot.Selector
		for _, v := range values {
			selectors = append(selectors, snapshot.Selector{Type: nodeclaim.PluginName, Value: v})
		}
		out = append(out, entry("class", class, "spiffe://"+in.Config.TrustDomain+"/spire/server", selectors))
	}
	return out
}

func workloadEntries(in desired.Intents, id trustgraph.Identity, class string) []snapshot.Entry {
	base := []snapshot.Selector{
		workload(workloadclaim.KindNamespace, id.Namespace),
		workload(workloadclaim.KindServiceAccount, id.ServiceAccount),
	}
	if id.Restricted {
		base = append(base, workload(workloadclaim.KindRuntime, workloadclaim.RuntimeRestricted))
	}
	digests := id.Digests
	if len(digests) == 0 {
		digests = []string{""}
	}
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
			e := entry("workload", trustgraph.SPIFFEID(in.Config.TrustDomain, id.Namespace, id.ServiceAccount), class, selectors)
			e.X509SVIDTTL = in.Config.X509SVIDTTL
			out = append(out, e)
		}
	}
	return out
}

func workload(kind workloadclaim.Kind, value string) snapshot.Selector {
	return snapshot.Selector{Type: workloadclaim.SelectorType, Value: string(kind) + ":" + value}
}

// entry sorts its selectors and derives its ID. SPIRE allows letters, digits, "-", "."
// and "_" in an entry ID, at most 255 (pkg/server/datastore/sqlstore, v1.15.3).
func entry(kind, id, parent string, selectors []snapshot.Selector) snapshot.Entry {
	slices.SortFunc(selectors, compareSelectors)
	selectors = slices.Compact(selectors)
	parts := []string{kind, id, parent}
	for _, s := range selectors {
		parts = append(parts, s.Type, s.Value)
	}
	return snapshot.Entry{ID: v1alpha1.EntryIDPrefix + kind + "." + digest(parts...), SPIFFEID: id, ParentID: parent, Selectors: selectors}
}

func compareSelectors(a, b snapshot.Selector) int {
	return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Value, b.Value))
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
