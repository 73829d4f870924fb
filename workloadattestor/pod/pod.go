// Package pod reads from the Kubernetes API what the container runtime does not know of a pod: its service account, and what its
// spec asks for in all of its containers.
//
// A pod is asked for by name, and what the runtime says about it is held against the API's object: the same UID, on this
// node. A pod's service account, node, volumes and containers never change (Kubernetes validates them as immutable, but for ephemeral
// containers, which come and stay), so an answer may be kept; it is asked again after a short time all the same, because a pod that was deleted
// has no service account any more, and because of those that come.
package pod

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson-project/keelson/workloadattestor/confined"
)

// ErrNotFound means that the API has no such pod on this node.
var ErrNotFound = errors.New("pod not found on this node")

// Getter is the part of the API that is needed: verb get on pods, and on claims and volumes where parts of claims are used.
type Getter interface {
	// Get returns one object of API group core/v1 as JSON. resource is the plural; namespace is "" for persistentvolumes.
	Get(ctx context.Context, resource, namespace, name string) ([]byte, error)
}

// Config of a Lookup.
type Config struct {
	Node    string           // name of this node
	Pods    Getter           // the API
	Fresh   time.Duration    // how long an answer is used without asking again
	Keep    time.Duration    // how long it is used while the API cannot be asked
	Timeout time.Duration    // of one request
	Now     func() time.Time // the clock
	// AllowedHostPaths are folders and files of the node that a restricted pod may mount read-only.
	AllowedHostPaths []string
}

// Facts is what the API says of a pod.
type Facts struct {
	Account string
	// RuntimeClass is the name of the pod's RuntimeClass, "" if it names none.
	RuntimeClass string
	// Baseline and Restricted are what the levels have against its spec, Paths what both have against its volumes.
	Baseline, Restricted, Paths confined.Judgement
	// Containers are the names of all of the spec's containers, init and ephemeral ones among them.
	Containers []string
	// Images are what they ask for, by their names.
	Images map[string]string
	// PullSecrets are the names in its spec.imagePullSecrets.
	PullSecrets []string
}

// Lookup finds pods. It is safe for concurrent use.
type Lookup struct {
	config Config
	mu     sync.Mutex
	known  map[types.UID]answer
}

type answer struct {
	namespace, name string
	facts           Facts
	at              time.Time
}

// maxKnown bounds the answers that are kept; a node runs a few hundred pods at most.
const maxKnown = 4096

// New makes a Lookup.
func New(c Config) *Lookup { return &Lookup{config: c, known: map[types.UID]answer{}} }

// Facts are the facts about the pod with this namespace, name and UID. ErrNotFound when the API says
// that there is none like that on this node; any other error means that nothing is known.
func (l *Lookup) Facts(ctx context.Context, namespace, name, uid string) (Facts, error) {
	now := l.config.Now()
	have, ok := l.get(namespace, name, types.UID(uid))
	if ok && now.Sub(have.at) < l.config.Fresh {
		return have.facts, nil
	}
	facts, _, err := l.ask(ctx, namespace, name, uid)
	var away *awayError
	if errors.As(err, &away) && ok && now.Sub(have.at) < l.config.Keep {
		return have.facts, nil
	}
	return facts, err
}

// Find asks the API about the pod with this namespace and name, and with this UID unless uid is "". Nothing that was heard before
// stands in for its answer. It returns the pod's UID too. ErrNotFound when the API says that there is none like that on this node.
func (l *Lookup) Find(ctx context.Context, namespace, name, uid string) (Facts, string, error) {
	return l.ask(ctx, namespace, name, uid)
}

// awayError means that the API did not answer.
type awayError struct{ err error }

func (e *awayError) Error() string { return e.err.Error() }
func (e *awayError) Unwrap() error { return e.err }

// ask asks the API and keeps the answer. uid "" is any.
func (l *Lookup) ask(ctx context.Context, namespace, name, uid string) (Facts, string, error) {
	now := l.config.Now()
	ctx, cancel := context.WithTimeout(ctx, l.config.Timeout)
	defer cancel()
	p, strange, err := l.getPod(ctx, namespace, name)
	switch {
	case apierrors.IsNotFound(err):
		l.forget(types.UID(uid))
		return Facts{}, "", fmt.Errorf("pod: %s/%s: the API has no such pod: %w", namespace, name, ErrNotFound)
	case err != nil:
		return Facts{}, "", &awayError{fmt.Errorf("pod: %s/%s: %w", namespace, name, err)}
	}
	want := types.UID(uid)
	if want == "" {
		want = p.UID
	}
	account, err := accountOf(p, l.config.Node, namespace, name, want)
	if err != nil {
		l.forget(want)
		return Facts{}, "", err
	}
	facts := l.judge(ctx, p, strange)
	facts.Account = account
	l.put(want, answer{namespace: namespace, name: name, facts: facts, at: now})
	return facts, string(want), nil
}

// accountOf holds the API's object against what the runtime says: a pod of the same name that was made anew, or that runs on
// another node, is another pod.
func accountOf(p *corev1.Pod, node, namespace, name string, uid types.UID) (string, error) {
	switch {
	case p.Namespace != namespace || p.Name != name:
		return "", fmt.Errorf("pod: asked for %s/%s, got %s/%s: %w", namespace, name, p.Namespace, p.Name, ErrNotFound)
	case uid == "" || p.UID != uid:
		return "", fmt.Errorf("pod: %s/%s has UID %s in the API, not %.128q: %w", namespace, name, p.UID, uid, ErrNotFound)
	case node == "" || p.Spec.NodeName != node:
		return "", fmt.Errorf("pod: %s/%s is on node %q, this is %q: %w", namespace, name, p.Spec.NodeName, node, ErrNotFound)
	case p.Spec.ServiceAccountName == "":
		return "", fmt.Errorf("pod: %s/%s has no service account: %w", namespace, name, ErrNotFound)
	}
	return p.Spec.ServiceAccountName, nil
}

// Known is how many answers are kept.
func (l *Lookup) Known() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.known)
}

func (l *Lookup) get(namespace, name string, uid types.UID) (answer, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, ok := l.known[uid]
	if !ok || a.namespace != namespace || a.name != name {
		return answer{}, false
	}
	return a, true
}

func (l *Lookup) forget(uid types.UID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.known, uid)
}

// put keeps an answer, and makes room by dropping any other: that only costs a request.
func (l *Lookup) put(uid types.UID, a answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for other := range l.known {
		if len(l.known) < maxKnown {
			break
		}
		delete(l.known, other)
	}
	l.known[uid] = a
}
