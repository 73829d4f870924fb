package revocations

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// What changes seldom is read now and then; soon again until it has been read once.
const (
	pollPeriod = 5 * time.Minute
	pollSoon   = 5 * time.Second
)

var (
	felixResource    = schema.GroupVersionResource{Group: "projectcalico.org", Version: "v3", Resource: "felixconfigurations"}
	endpointResource = discoveryv1.SchemeGroupVersion.WithResource("endpointslices")
)

// poll reads which data plane Felix runs, and where the API server is behind its Service. Failures change nothing: the watches
// say when the API is away, and rights that were not given leave open what cannot be read.
func (r *reader) poll(ctx context.Context, objects dynamic.Interface) {
	last := ""
	for {
		ebpf, felixErr := r.readFelix(ctx, objects)
		servers, serversErr := readServers(ctx, objects)
		r.change(func() {
			if felixErr == nil {
				r.ebpf = ebpf
			}
			r.servers.add(servers...)
		})
		pause := pollPeriod + rand.N(pollPeriod/4) //nolint:gosec // spreads nodes over time
		text := ""
		if err := errors.Join(felixErr, serversErr); err != nil {
			pause, text = pollSoon+rand.N(pollSoon), err.Error() //nolint:gosec // spreads nodes over time
			if apierrors.IsForbidden(felixErr) || apierrors.IsForbidden(serversErr) {
				pause = pollPeriod
			}
		}
		if text != last && ctx.Err() == nil {
			r.o.Log.Debug("read beside the watches", "problem", text)
		}
		last = text
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// readFelix tells whether Felix runs its eBPF data plane: this node's configuration overrides the default one. What the
// environment of calico-node says instead cannot be seen from here.
func (r *reader) readFelix(ctx context.Context, objects dynamic.Interface) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, pollSoon)
	defer cancel()
	for _, name := range []string{"node." + r.o.Node, "default"} {
		u, err := objects.Resource(felixResource).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("revocations: FelixConfiguration %s: %w", name, plain(err))
		}
		if ebpf, found, err := unstructured.NestedBool(u.Object, "spec", "bpfEnabled"); found || err != nil {
			return ebpf, err
		}
	}
	return false, nil
}

func readServers(ctx context.Context, objects dynamic.Interface) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, pollSoon)
	defer cancel()
	u, err := objects.Resource(endpointResource).Namespace(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil // an API server that listens on a loopback address publishes none
	}
	if err != nil {
		return nil, fmt.Errorf("revocations: EndpointSlice kubernetes: %w", plain(err))
	}
	var slice discoveryv1.EndpointSlice
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &slice); err != nil {
		return nil, fmt.Errorf("revocations: EndpointSlice kubernetes: %w", err)
	}
	var out []netip.Addr
	for _, e := range slice.Endpoints {
		for _, text := range e.Addresses {
			if a, err := netip.ParseAddr(text); err == nil {
				out = append(out, a)
			}
		}
	}
	return out, nil
}
