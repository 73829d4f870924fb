// Package revocations reads what keelson-node needs to know from the Kubernetes API: which addresses are revoked, and which are
// never to be cut.
//
// Who controls what it reads: the sets of revoked addresses and the Nodes' verdict labels are policy-sync's; a Node's status is its
// kubelet's. A bad machine could list its pods' addresses there to have their flows spared, so only a Node that is trusted
// shields addresses this way. (The node that sweeps shields its own by itself, package cutter.) Of the whole cluster it keeps the
// Nodes' names and addresses.
package revocations

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/flows"
)

// Options say what to read and whom to tell.
type Options struct {
	// Config is the API server's, with the rights of kube.NodeRBAC.
	Config *rest.Config
	// Node is the name of this node's Node object.
	Node string
	// Update is told each new state of the world, one at a time.
	Update func(flows.World)
	Log    *slog.Logger
}

// Watch reads until ctx ends. An API that is away is no error: it is in the world's Problem, and asked again.
func Watch(ctx context.Context, o Options) error {
	r := &reader{o: o, further: make(chan struct{}, 1)}
	config := rest.CopyConfig(o.Config)
	config.Dial = r.dial
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return fmt.Errorf("revocations: %w", err)
	}
	objects, err := dynamic.NewForConfigAndClient(config, client)
	if err != nil {
		return fmt.Errorf("revocations: %w", err)
	}
	compact := rest.CopyConfig(config)
	compact.ContentType, compact.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	nodes, err := corev1client.NewForConfigAndClient(compact, client)
	if err != nil {
		return fmt.Errorf("revocations: %w", err)
	}
	var running sync.WaitGroup
	running.Go(func() { r.watchSets(ctx, objects) })
	running.Go(func() { r.watchNodes(ctx, nodes.Nodes()) })
	running.Go(func() { r.poll(ctx, objects) })
	running.Wait()
	client.CloseIdleConnections()
	return nil
}

// How long after a failure a watch is tried again at most, doubled by jitter. That of the set is short: after an outage of the
// API the first thing that policy-sync writes may be a revocation.
const (
	setPatience  = 2 * time.Second
	nodePatience = 15 * time.Second
)

func backoff(most time.Duration) *wait.Backoff {
	return &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 12, Cap: most}
}

var setResource = schema.GroupVersionResource{Group: "projectcalico.org", Version: "v3", Resource: "globalnetworksets"}

// watchSets watches the first set and, of the further ones, those that exist and the next one after each. The account may read
// these by name alone, and most clusters need no second one. A set behind a gap is found by looking for it now and then.
func (r *reader) watchSets(ctx context.Context, objects dynamic.Interface) {
	var running sync.WaitGroup
	defer running.Wait()
	var watched [v1alpha1.MaxRevokedSets]bool
	start := func(i int) {
		if !watched[i] {
			watched[i] = true
			running.Go(func() { r.watchSet(ctx, objects, i) })
		}
	}
	start(0)
	look := time.NewTimer(0)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.further:
			r.mu.Lock()
			known := [v1alpha1.MaxRevokedSets]bool{}
			for i := range r.sets {
				known[i] = r.sets[i].known
			}
			r.mu.Unlock()
			for i := range known[:len(known)-1] {
				if known[i] {
					start(i + 1)
				}
			}
		case <-look.C:
			pause := pollPeriod + rand.N(pollPeriod/4) //nolint:gosec // spreads nodes over time
			for i := range watched {
				if _, err := objects.Resource(setResource).Get(ctx, v1alpha1.RevokedSetName(i), metav1.GetOptions{}); err == nil {
					start(i)
				} else if !apierrors.IsNotFound(err) {
					pause = pollSoon
				}
			}
			look.Reset(pause)
		}
	}
}

// watchSet watches one set. Calico's API server knows no streaming lists.
func (r *reader) watchSet(ctx context.Context, objects dynamic.Interface, i int) {
	sets := objects.Resource(setResource)
	only := fields.OneTermEqualSelector(metav1.ObjectNameField, v1alpha1.RevokedSetName(i)).String()
	source := &source[*unstructured.UnstructuredList]{list: sets.List, watch: sets.Watch, fields: only,
		note: func(err error) { r.changeSet(i, func(s *set) { s.noted(err) }) }}
	cache.NewReflectorWithOptions(whole{source.listWatch()}, &unstructured.Unstructured{}, mirror{
		put:     func(o any) { r.changeSet(i, func(s *set) { s.put(o) }); r.lookFurther() },
		remove:  func(any) { r.changeSet(i, func(s *set) { s.gone() }) },
		replace: func(all []any) { r.changeSet(i, func(s *set) { s.replace(all) }); r.lookFurther() },
	}, cache.ReflectorOptions{Name: "revoked", TypeDescription: "GlobalNetworkSet", Backoff: backoff(setPatience)}).RunWithContext(ctx)
}

// lookFurther has watchSets look which sets exist.
func (r *reader) lookFurther() {
	select {
	case r.further <- struct{}{}:
	default:
	}
}

func (r *reader) watchNodes(ctx context.Context, nodes corev1client.NodeInterface) {
	source := &source[*corev1.NodeList]{list: nodes.List, watch: nodes.Watch, note: func(err error) { r.note(r.nodes.noted(err)) }}
	lw := cache.ToListWatcherWithWatchListSemantics(source.listWatch(), nodes)
	cache.NewReflectorWithOptions(lw, &corev1.Node{}, mirror{
		put:     func(o any) { r.change(func() { r.nodes.put(o) }) },
		remove:  func(o any) { r.change(func() { r.nodes.remove(o) }) },
		replace: func(all []any) { r.change(func() { r.nodes.replace(all) }) },
	}, cache.ReflectorOptions{Name: "nodes", TypeDescription: "Node", Backoff: backoff(nodePatience)}).RunWithContext(ctx)
}

// whole is a source that does not stream its list.
type whole struct{ *cache.ListWatch }

// IsWatchListSemanticsUnSupported is asked by client-go.
func (whole) IsWatchListSemanticsUnSupported() bool { return true }

// dial connects to the API server and remembers where it is: a Service's address, a load balancer's or its own.
func (r *reader) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		r.change(func() { r.servers.add(a.AddrPort().Addr()) })
	}
	return c, nil
}
