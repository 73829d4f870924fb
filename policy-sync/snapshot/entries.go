package snapshot

import (
	"cmp"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// Kinds of entries, a part of their IDs: "keelson.<cluster>.<kind>.<hash>". The IDs of earlier versions had no cluster.
const (
	entryKindClass    = "class"
	entryKindWorkload = "workload"
)

// ClusterName returns the configured name, or else the UID of namespace kube-system. It is empty where neither is known.
func (s Snapshot) ClusterName() string {
	uid := ""
	for i := range s.Namespaces {
		if s.Namespaces[i].Name == metav1.NamespaceSystem {
			uid = strings.ToLower(string(s.Namespaces[i].UID))
		}
	}
	return cmp.Or(s.Config.ClusterName, uid)
}

// WorkloadEntryPrefix starts the ID of every entry that the policy-sync of a cluster writes.
func WorkloadEntryPrefix(cluster string) string {
	if cluster == "" {
		return v1alpha1.EntryIDPrefix + entryKindWorkload + "."
	}
	return v1alpha1.EntryIDPrefix + cluster + "." + entryKindWorkload + "."
}

// EntryCluster returns the cluster whose policy-sync made the entry, by its ID; empty for one of an earlier version, whose ID names
// none. It returns false for an entry that no policy-sync made.
func EntryCluster(e Entry) (string, bool) {
	name, ok := strings.CutPrefix(e.ID, v1alpha1.EntryIDPrefix)
	if !ok {
		return "", false
	}
	switch parts := strings.Split(name, "."); {
	case len(parts) == 2 && (parts[0] == entryKindClass || parts[0] == entryKindWorkload) && parts[1] != "":
		return "", true
	case len(parts) == 3 && parts[0] != "" && parts[1] == entryKindWorkload && parts[2] != "":
		return parts[0], true
	}
	return "", false
}

// OwnedEntry reports whether a policy-sync made the SPIRE entry: this cluster's, another's, or one of an earlier version.
func OwnedEntry(e Entry) bool { return strings.HasPrefix(e.ID, v1alpha1.EntryIDPrefix) }
