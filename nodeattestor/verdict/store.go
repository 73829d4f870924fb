package verdict

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// ErrBoundElsewhere means that the node's NodeTrust names another EK. Only an
// administrator changes that, by deleting the NodeTrust.
var ErrBoundElsewhere = errors.New("the node is bound to another EK")

// ErrNodeMissing means that the verdict stands in a NodeTrust without a nodeUID, since
// no Node of that name exists yet; while it is trusted, policy-sync does not act on it.
var ErrNodeMissing = errors.New("no Node object of that name exists yet")

// readTimeout bounds what an attestation waits for at once: a read of the store, or the review of a token with its Node.
const readTimeout = 5 * time.Second

// Binding is what the shared store knows of a node.
type Binding struct {
	EKHash    string // EK that the node is bound to
	TagSerial uint64 // highest asset-tag serial seen, 0 for none
}

// Store reads and writes NodeTrust objects. Its methods may be called at once.
type Store struct {
	client client.Client
	clock  apiClock

	mu    sync.Mutex
	known map[string]Binding // last binding read per node, for when the API is away
}

// NewStore connects to the Kubernetes API described by cfg; it makes no request yet.
func NewStore(cfg *rest.Config) (*Store, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), authenticationv1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("verdict: scheme: %w", err)
	}
	s := NewStoreFor(nil)
	cfg = rest.CopyConfig(cfg)
	cfg.Wrap(s.clock.listen)
	var err error
	if s.client, err = client.New(cfg, client.Options{Scheme: scheme}); err != nil {
		return nil, fmt.Errorf("verdict: Kubernetes client: %w", err)
	}
	return s, nil
}

// NewStoreFor uses an existing client, whose scheme must know Node, TokenReview and NodeTrust.
func NewStoreFor(c client.Client) *Store { return &Store{client: c, known: map[string]Binding{}} }

// Binding returns what is known of the node, nil when it was never bound. When the
// API cannot be read, the last known binding stands, and a node that has none gets
// the error: new bindings wait until the store can be read again. An API that does not answer
// is away after readTimeout: it must not use up the time of the attestation.
func (s *Store) Binding(ctx context.Context, node string) (*Binding, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	var nt v1alpha1.NodeTrust
	err := s.client.Get(ctx, client.ObjectKey{Name: node}, &nt)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case apierrors.IsNotFound(err):
		delete(s.known, node)
		return nil, nil
	case err != nil:
		if b, ok := s.known[node]; ok {
			return &b, nil
		}
		return nil, fmt.Errorf("verdict: read NodeTrust %s: %w", node, err)
	}
	b := bindingOf(&nt.Spec)
	s.known[node] = b
	return &b, nil
}

func bindingOf(spec *v1alpha1.NodeTrustSpec) Binding {
	b := Binding{EKHash: spec.EKHash}
	if spec.TagSerial != nil && *spec.TagSerial > 0 {
		b.TagSerial = uint64(*spec.TagSerial)
	}
	return b
}

// Write brings the node's NodeTrust up to the result, unless a newer verdict stands
// there. It compares and writes under the object's resourceVersion, so that of two
// servers the later receipt wins; the CRD's transition rules refuse what slips through. now is the time at the call, which
// goes on while an API that comes back keeps the request waiting: what another server wrote meanwhile is not of the future.
func (s *Store) Write(ctx context.Context, r Result, now time.Time) error {
	begun := time.Now()
	uid, err := s.nodeUID(ctx, r.Node)
	if err != nil {
		return err
	}
	clock := func() time.Time { return now.Add(time.Since(begun)) }
	err = retry.OnError(retry.DefaultBackoff, retryable, func() error { return s.writeOnce(ctx, r, uid, clock) })
	if err != nil {
		return fmt.Errorf("verdict: write NodeTrust %s: %w", r.Node, err)
	}
	if uid == "" {
		return fmt.Errorf("verdict: NodeTrust %s: %w", r.Node, ErrNodeMissing)
	}
	return nil
}

// retryable are races with another writer; the next try reads what that one wrote.
func retryable(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }

func (s *Store) nodeUID(ctx context.Context, name string) (string, error) {
	var node metav1.PartialObjectMetadata
	node.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Node"))
	err := s.client.Get(ctx, client.ObjectKey{Name: name}, &node)
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("verdict: read Node %s: %w", name, err)
	}
	return string(node.UID), nil
}

func (s *Store) writeOnce(ctx context.Context, r Result, uid string, clock func() time.Time) error {
	var nt v1alpha1.NodeTrust
	err := s.client.Get(ctx, client.ObjectKey{Name: r.Node}, &nt)
	if apierrors.IsNotFound(err) {
		nt = v1alpha1.NodeTrust{ObjectMeta: metav1.ObjectMeta{Name: r.Node}, Spec: r.spec(uid)}
		if err := s.client.Create(ctx, &nt); err != nil {
			return err
		}
		s.remember(&nt)
		return nil
	}
	if err != nil {
		return err
	}
	s.remember(&nt)
	if nt.Spec.EKHash != r.EKHash {
		return fmt.Errorf("%w: NodeTrust has %s, the evidence %s; if the machine was replaced, delete the NodeTrust", ErrBoundElsewhere, nt.Spec.EKHash, r.EKHash)
	}
	now := clock() // after the read
	r = r.above(&nt.Spec, now)
	want := r.spec(uid)
	sameMoment := nt.Spec.AttestedAt.Time.Equal(want.AttestedAt.Time) && nt.Spec.Verdict == want.Verdict
	if !sameMoment && !r.supersedes(nt.Spec.AttestedAt.Time, nt.Spec.Verdict == v1alpha1.VerdictTrusted) {
		return nil
	}
	if saysTheSame(&nt.Spec, &want, now) || equality.Semantic.DeepEqual(nt.Spec, want) {
		return nil
	}
	nt.Spec = want
	if err := s.client.Update(ctx, &nt); err != nil {
		return err
	}
	s.remember(&nt)
	return nil
}

func (s *Store) remember(nt *v1alpha1.NodeTrust) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[nt.Name] = bindingOf(&nt.Spec)
}

// saysTheSame reports whether writing want would tell nobody anything new: trusted with
// the same claims, and more than half of the standing validity is still ahead. An
// untrusted verdict is always written: left out, its newer attestedAt would not stand in
// the way of a trusted one that was received between the two and comes late.
func saysTheSame(have, want *v1alpha1.NodeTrustSpec, now time.Time) bool {
	validity := have.ValidUntil.Sub(have.AttestedAt.Time)
	return want.Verdict == v1alpha1.VerdictTrusted && have.Verdict == want.Verdict && have.Reference == want.Reference && have.NodeUID == want.NodeUID &&
		have.AgentID == want.AgentID && maps.Equal(have.Tags, want.Tags) && slices.Equal(have.Reasons, want.Reasons) &&
		equalSerial(have.TagSerial, want.TagSerial) && have.ValidUntil.Sub(now) > validity/2
}

func equalSerial(a, b *int64) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
