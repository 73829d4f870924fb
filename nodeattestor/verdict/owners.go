package verdict

import (
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// Owners are the nodes that an EK is bound to, sorted: one, none when it was never bound, or several where
// two servers bound it at the same moment. When the API cannot be read, the last known answer stands, and an EK that has
// none gets the error, as with Binding. What waits to be written is not among them: see Queue.Nodes, and ask that first.
func (s *Store) Owners(ctx context.Context, ekHash string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	var list v1alpha1.NodeTrustList
	err := s.client.List(ctx, &list, client.MatchingFields{v1alpha1.NodeTrustEKHash: ekHash})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		if nodes := s.knownOwners(ekHash); len(nodes) > 0 {
			return nodes, nil
		}
		return nil, fmt.Errorf("verdict: which node EK %s is bound to: %w%s", ekHash, err, hint(err))
	}
	for _, node := range s.knownOwners(ekHash) {
		delete(s.known, node) // an administrator may have deleted it
	}
	for i := range list.Items {
		s.known[list.Items[i].Name] = bindingOf(&list.Items[i].Spec)
	}
	return s.knownOwners(ekHash), nil
}

// hint says what is missing where the API answers, but not this question.
func hint(err error) string {
	switch {
	case apierrors.IsForbidden(err):
		return "; the server's account needs list on nodetrusts." + v1alpha1.Group
	case apierrors.IsBadRequest(err):
		return "; apply the definition of NodeTrusts of this release, which makes " + v1alpha1.NodeTrustEKHash + " selectable"
	}
	return ""
}

// knownOwners are the nodes whose last known binding is to an EK. The caller holds the lock.
func (s *Store) knownOwners(ekHash string) []string {
	var nodes []string
	for node, b := range s.known {
		if b.EKHash == ekHash {
			nodes = append(nodes, node)
		}
	}
	slices.Sort(nodes)
	return nodes
}

// Nodes are the nodes of an EK in verdicts that wait to be written, sorted: the store does not know them yet. A verdict
// leaves the queue only once it is in the store, so that whoever asks the queue first and the store then misses none.
func (q *Queue) Nodes(ekHash string) []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	var nodes []string
	for node, r := range q.pending {
		if r.EKHash == ekHash {
			nodes = append(nodes, node)
		}
	}
	slices.Sort(nodes)
	return nodes
}
