package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/spireapi"
	"github.com/keelson-project/keelson/policy-sync/syncconfig"
	"github.com/keelson-project/keelson/policy-sync/syncer"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
	"github.com/keelson-project/keelson/workloadattestor/image"
)

// observer looks at a cluster as policy-sync does and changes nothing.
type observer struct {
	config      string
	kubeconfig  string
	trustDomain string
	spireSocket string
}

func (o *observer) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.config, "config", "", "policy-sync's configuration file: its trust domain, SPIRE server and verifiers are used")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file (default: $KUBECONFIG, then ~/.kube/config)")
	f.StringVar(&o.trustDomain, "trust-domain", "", "SPIFFE trust domain, where no --config is given")
	f.StringVar(&o.spireSocket, "spire-socket", "", "admin socket of the SPIRE server, where no --config is given")
}

// settings are what is known about how policy-sync is configured.
func (o *observer) settings() (syncconfig.Config, error) {
	if o.config != "" {
		c, err := syncconfig.Load(o.config)
		if o.kubeconfig != "" {
			c.Kubeconfig = o.kubeconfig
		}
		return c, err
	}
	td, err := spiffeid.TrustDomainFromString(o.trustDomain)
	if err != nil {
		return syncconfig.Config{}, fmt.Errorf("give --config, or --trust-domain: %w", err)
	}
	return syncconfig.Config{
		Kubeconfig: o.kubeconfig, Calico: syncconfig.Optional, Istio: syncconfig.Optional,
		Snapshot: snapshot.Config{TrustDomain: td.Name(), Taint: true},
		SPIRE:    syncconfig.SPIRE{TrustDomain: td, Socket: o.spireSocket, Timeout: 5 * time.Second},
	}, nil
}

// observe reads everything that there is to read and decides on it. Notes say what could not be looked at.
func (o *observer) observe(ctx context.Context) (snapshot.Snapshot, plan.Result, []string, error) {
	c, err := o.settings()
	if err != nil {
		return snapshot.Snapshot{}, plan.Result{}, nil, err
	}
	s, err := readCluster(ctx, &c)
	if err != nil {
		return snapshot.Snapshot{}, plan.Result{}, nil, err
	}
	s.At = time.Now()
	var notes []string
	if o.config == "" {
		notes = append(notes, "images were not verified, since no --config names the verifiers: pods count as they would without any proof of their image")
	} else if s.Images, err = verifyImages(ctx, c, s); err != nil {
		return snapshot.Snapshot{}, plan.Result{}, nil, err
	}
	switch spire, err := readSPIRE(ctx, c.SPIRE); {
	case err != nil:
		notes = append(notes, fmt.Sprintf("the SPIRE server was not read, so nothing would be opened: %v", err))
	default:
		s.SPIRE = spire
	}
	r, err := plan.Make(s)
	return s, r, notes, err
}

func readCluster(ctx context.Context, c *syncconfig.Config) (snapshot.Snapshot, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.Kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return snapshot.Snapshot{}, fmt.Errorf("kubernetes: %w", err)
	}
	config.QPS = -1
	disco, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return snapshot.Snapshot{}, fmt.Errorf("kubernetes: %w", err)
	}
	found, err := kube.Discover(disco)
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	c.Snapshot.Absent = found.Absent
	c.Snapshot.Calico = found.Calico && c.Calico != syncconfig.Off
	c.Snapshot.Istio = found.Istio && c.Istio != syncconfig.Off
	scheme, err := kube.Scheme()
	if err != nil {
		return snapshot.Snapshot{}, fmt.Errorf("kubernetes: %w", err)
	}
	api, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return snapshot.Snapshot{}, fmt.Errorf("kubernetes: %w", err)
	}
	return kube.New(api, api, nil, c.Snapshot).Read(ctx)
}

func readSPIRE(ctx context.Context, c syncconfig.SPIRE) (_ *snapshot.SPIRE, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	api, err := spireapi.Dial(ctx, spireapi.Options{TrustDomain: c.TrustDomain, Socket: c.Socket, Address: c.Address, WorkloadAPI: c.WorkloadAPI})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, api.Close()) }()
	return api.Read(ctx)
}

// verifyImages asks the verifiers as policy-sync does, and waits for the answers.
func verifyImages(ctx context.Context, c syncconfig.Config, s snapshot.Snapshot) (map[snapshot.ImageKey]snapshot.Image, error) {
	c.Images.Checker.Now = time.Now
	checker, err := image.New(c.Images.Checker)
	if err != nil {
		return nil, err
	}
	check := syncer.Checker(checker)
	out := map[snapshot.ImageKey]snapshot.Image{}
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(8)
	for _, q := range trustgraph.ImageQuestions(s) {
		group.Go(func() error {
			answer := check(ctx, q.ImageKey)
			mu.Lock()
			defer mu.Unlock()
			out[q.ImageKey] = answer
			return nil
		})
	}
	return out, group.Wait()
}
