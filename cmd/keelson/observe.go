package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/history"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/spireapi"
	"github.com/keelson-project/keelson/policy-sync/syncconfig"
	"github.com/keelson-project/keelson/policy-sync/syncer"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
	"github.com/keelson-project/keelson/workloadattestor/image"
	"github.com/keelson-project/keelson/workloadattestor/pullsecret"
)

// observer looks at a cluster as policy-sync does and changes nothing.
type observer struct {
	config      string
	kubeconfig  string
	namespace   string
	trustDomain string
	spireSocket string
	// dir has the files that the installed configuration names, as long as it is used. Policy-sync's container has no place for any.
	dir string
}

func (o *observer) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.config, "config", "", "policy-sync's configuration file: its trust domain, SPIRE server and verifiers are used (default: what is installed in --namespace)")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file (default: $KUBECONFIG, then ~/.kube/config, then the pod's own account)")
	f.StringVar(&o.namespace, "namespace", "keelson-system", "namespace in which policy-sync is installed")
	f.StringVar(&o.trustDomain, "trust-domain", "", "SPIFFE trust domain, to look without policy-sync's configuration: nothing is known of images then")
	f.StringVar(&o.spireSocket, "spire-socket", "", "admin socket of the SPIRE server, with --trust-domain")
}

// observed is what an observer saw and what follows from it.
type observed struct {
	snapshot snapshot.Snapshot
	result   plan.Result
	// notes say what was used, and what could not be looked at.
	notes []string
	// verified is true when verifiers were asked about images: without any, nothing is known of them.
	verified bool
	// images are what policy-sync has noted of the images that workloads ran.
	images []history.Image
	// running is nil where policy-sync leaves no trace of whether it runs.
	running *running
}

// given are the settings that flags name; false when they name none.
func (o *observer) given() (c syncconfig.Config, ok bool, err error) {
	if o.config != "" {
		c, err := syncconfig.Load(o.config)
		if err != nil {
			return c, true, fmt.Errorf("%w\nWithout --config, the installed configuration and the keys that it names are read from the cluster", err)
		}
		if o.kubeconfig != "" {
			c.Kubeconfig = o.kubeconfig
		}
		return c, true, nil
	}
	if o.trustDomain == "" {
		return syncconfig.Config{}, false, nil
	}
	td, err := spiffeid.TrustDomainFromString(o.trustDomain)
	if err != nil {
		return syncconfig.Config{}, true, fmt.Errorf("--trust-domain: %w", err)
	}
	return syncconfig.Config{
		Kubeconfig: o.kubeconfig, Calico: syncconfig.Optional, Istio: syncconfig.Optional,
		Snapshot:       snapshot.Config{TrustDomain: td.Name(), Taint: true},
		SPIRE:          syncconfig.SPIRE{TrustDomain: td, Socket: o.spireSocket, Timeout: 5 * time.Second},
		LeaderElection: syncconfig.LeaderElection{Enabled: true, Namespace: o.namespace},
	}, true, nil
}

// settings are what is known about how policy-sync is configured, and access to the cluster. Used says where they are from, when
// that was found out.
func (o *observer) settings(ctx context.Context) (c syncconfig.Config, access *rest.Config, used string, err error) {
	c, ok, err := o.given()
	if err != nil {
		return c, nil, "", err
	}
	if !ok {
		c.Kubeconfig = o.kubeconfig
	}
	if access, err = reach(c.Kubeconfig); err != nil || ok {
		return c, access, "", err
	}
	api, err := kubernetes.NewForConfig(access)
	if err != nil {
		return c, nil, "", fmt.Errorf("kubernetes: %w", err)
	}
	i, err := openInstallation(ctx, api, o.namespace)
	if err != nil {
		return c, nil, "", fmt.Errorf("policy-sync's configuration: %w; or give --config", err)
	}
	if o.dir, err = os.MkdirTemp("", "keelson-"); err != nil {
		return c, nil, "", err
	}
	if c, err = i.settings(ctx, o.dir); err != nil {
		return c, nil, "", fmt.Errorf("policy-sync's configuration: %w", err)
	}
	return c, access, "the configuration is that of " + strings.Join(i.used, ", "), nil
}

// observe reads everything that there is to read and decides on it.
func (o *observer) observe(ctx context.Context) (out observed, err error) {
	c, access, used, err := o.settings(ctx)
	if o.dir != "" {
		defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	}
	if err != nil {
		return observed{}, err
	}
	api, err := kubernetes.NewForConfig(access)
	if err != nil {
		return observed{}, fmt.Errorf("kubernetes: %w", err)
	}
	if out.snapshot, err = readCluster(ctx, access, &c); err != nil {
		return observed{}, err
	}
	s := &out.snapshot
	s.At = time.Now()
	if used != "" {
		out.notes = append(out.notes, used)
	}
	if c.LeaderElection.Enabled {
		out.running = readRunning(ctx, api, c.LeaderElection.Namespace, s.At)
		if fault := out.running.fault(); fault != "" {
			out.notes = append(out.notes, fault)
		}
		images, note := readHistory(ctx, api, c.LeaderElection.Namespace)
		if out.images = images; note != "" {
			out.notes = append(out.notes, note)
		}
	}
	// What bears a label was given it by policy-sync, which remembers why.
	s.InheritUntil = s.At.Add(time.Minute)
	if out.verified = o.config != "" || o.trustDomain == ""; out.verified {
		if s.Images, err = verifyImages(ctx, c, api, *s); err != nil {
			return observed{}, err
		}
	} else {
		out.notes = append(out.notes, "nothing is known of images, since no configuration names their verifiers")
	}
	switch spire, err := readSPIRE(ctx, c.SPIRE); {
	case err != nil:
		out.notes = append(out.notes, fmt.Sprintf("the SPIRE server was not read, so what would be opened waits: %v. "+
			"Where policy-sync runs it can be: %s", err, inPod(o.namespace, "plan")))
	default:
		s.SPIRE = spire
	}
	out.result, err = plan.Make(*s)
	return out, err
}

// reach is how the API server is reached.
func reach(kubeconfig string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	config.QPS = -1
	return config, nil
}

func readCluster(ctx context.Context, config *rest.Config, c *syncconfig.Config) (snapshot.Snapshot, error) {
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

// here tells whether a socket is on this machine: nobody need wait for one that is not.
func here(address string) error {
	socket, unix := strings.CutPrefix(address, "unix:")
	if !unix {
		return nil
	}
	_, err := os.Stat("/" + strings.TrimLeft(socket, "/"))
	return err
}

func readSPIRE(ctx context.Context, c syncconfig.SPIRE) (_ *snapshot.SPIRE, err error) {
	socket := c.WorkloadAPI
	if c.Socket != "" {
		socket = "unix://" + c.Socket
	}
	if err := here(socket); err != nil {
		return nil, err
	}
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
func verifyImages(ctx context.Context, c syncconfig.Config, api kubernetes.Interface, s snapshot.Snapshot) (map[snapshot.ImageKey]snapshot.Image, error) {
	c.Images.Checker.Now = time.Now
	if c.Images.PullSecrets {
		c.Images.Checker.PullSecrets = pullsecret.New(pullsecret.Client{CoreV1Interface: api.CoreV1()}, time.Now)
	}
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
