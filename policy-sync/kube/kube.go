// Package kube reads Kubernetes into a snapshot and writes what a plan says: the only package of policy-sync that talks to
// the API server.
//
// It decides nothing. A reading is complete or an error. A write carries what it was planned from (UID and resourceVersion),
// so that an object that changed in between, or was made again under its old name, is refused by the API server (ErrStale)
// and planned again. Whole objects that policy-sync owns are replaced (PUT), not merged: server-side apply would leave the
// fields that somebody else added to them, and a selector or a rule added to one of our policies is what has to go. Nodes and
// Pods, which others own, get merge patches of our keys alone.
package kube

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// ErrStale says that an object is not what the plan was made from any more: read and plan again.
var ErrStale = errors.New("the object changed since it was read")

// Scheme knows Kubernetes' own kinds and Keelson's.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	if err := scheme.AddToScheme(s); err != nil {
		return nil, err
	}
	if err := v1alpha1.AddToScheme(s); err != nil {
		return nil, err
	}
	return s, nil
}

// Store is the Kubernetes API as policy-sync sees it.
type Store struct {
	reader   client.Reader
	writer   client.Client
	recorder events.EventRecorder
	config   snapshot.Config
	kinds    []snapshot.Kind
	// looked is when unlabelled looked last, in Unix nanoseconds.
	looked atomic.Int64
	// said are statuses that were compared with what is there. Reports come one after the other.
	said map[client.ObjectKey]said
	// changes are noted once the store is watched. What was read is kept until it changes.
	watched bool
	changes changes
	reading sync.Mutex
	kept    lists
}

// New makes a store. It reads from reader (a cache, or the API itself) and writes through writer. A nil recorder writes no
// events.
func New(reader client.Reader, writer client.Client, recorder events.EventRecorder, config snapshot.Config) *Store {
	return &Store{reader: reader, writer: writer, recorder: recorder, config: config, kinds: snapshot.Kinds(config), said: map[client.ObjectKey]said{}}
}

// staleError marks an API server's answer that means that the object is not what it was.
type staleError struct{ error }

func (e staleError) Unwrap() error        { return e.error }
func (e staleError) Is(target error) bool { return target == ErrStale }

func stale(err error) error {
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err) || anotherUID(err) {
		return staleError{err}
	}
	return err
}

// anotherUID tells whether the API server refused a patch because the object of that name is another one by now: a patch's
// UID is not a precondition to it but an attempt to change an immutable field.
func anotherUID(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || !apierrors.IsInvalid(err) || status.Status().Details == nil {
		return false
	}
	return slices.ContainsFunc(status.Status().Details.Causes, func(c metav1.StatusCause) bool { return c.Field == "metadata.uid" })
}
