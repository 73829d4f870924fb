package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	authenticationv1client "k8s.io/client-go/kubernetes/typed/authentication/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/panics"
	"github.com/keelson-project/keelson/policy-sync/replicas"
	"github.com/keelson-project/keelson/policy-sync/spireapi"
	"github.com/keelson-project/keelson/policy-sync/syncconfig"
	"github.com/keelson-project/keelson/policy-sync/syncer"
	"github.com/keelson-project/keelson/workloadattestor/image"
	"github.com/keelson-project/keelson/workloadattestor/pullsecret"
)

// run wires the parts together and runs them until ctx ends.
func run(ctx context.Context, c syncconfig.Config, log *slog.Logger) error {
	ctrl.SetLogger(logr.FromSlogHandler(log.Handler()))
	klog.SetSlogLogger(log)
	config, err := restConfig(c.Kubeconfig)
	if err != nil {
		return err
	}
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return fmt.Errorf("kubernetes: %w", err)
	}
	if err := dataPlanes(client, &c, log); err != nil {
		return err
	}
	caught, err := panics.New(log, time.Now, metrics.Registry)
	if err != nil {
		return err
	}
	spire, err := spireapi.Open(spireapi.Options{TrustDomain: c.SPIRE.TrustDomain, Socket: c.SPIRE.Socket, Panics: caught,
		Address: c.SPIRE.Address, WorkloadAPI: c.SPIRE.WorkloadAPI, PageTimeout: c.SPIRE.Timeout, MaxRead: c.SPIRE.MaxRead})
	if err != nil {
		return err
	}
	lease, rules, err := lock(ctx, config, c, spire.OwnSVID)
	if err != nil {
		return errors.Join(err, spire.Close())
	}
	mgr, err := newManager(config, c, lease)
	if err != nil {
		return errors.Join(err, spire.Close())
	}
	if rules != nil {
		err = mgr.Add(guarded{rules, "the rules about who leads", caught})
	}
	if err := errors.Join(err, assemble(ctx, mgr, spire, c, log, caught), mgr.Add(guarded{arrivals{client, c, log}, "looking for data planes", caught})); err != nil {
		return errors.Join(err, spire.Close())
	}
	return errors.Join(mgr.Start(ctx), spire.Close())
}

// spireFresh is for how long a reading of the SPIRE server serves passes; a pass that closes what a
// verdict closes, and the resync, read it anew.
const spireFresh = 5 * time.Second

// readTimeout bounds a whole reading of the SPIRE server. A page that takes longer than spire.timeout ends it sooner.
const readTimeout = 5 * time.Minute

// assemble adds the loop, the image results and the watches to the manager.
func assemble(ctx context.Context, mgr manager.Manager, spire *spireapi.Server, c syncconfig.Config, log *slog.Logger, caught *panics.Recorder) error {
	counters, err := syncer.NewMetrics(metrics.Registry)
	if err != nil {
		return err
	}
	c.Images.Checker.Now = time.Now
	if credentials := c.Images.Credentials; credentials != nil {
		credentials.Report = func(err error) {
			if err != nil {
				log.Warn("registry credentials", "error", err)
				return
			}
			log.Info("registry credentials were read again")
		}
	}
	if c.Images.PullSecrets {
		client, err := corev1client.NewForConfig(mgr.GetConfig())
		if err != nil {
			return err
		}
		c.Images.Checker.PullSecrets = pullsecret.New(pullsecret.Client{CoreV1Interface: client}, time.Now)
	}
	checker, err := image.New(c.Images.Checker)
	if err != nil {
		return err
	}
	var loop *syncer.Syncer
	images := syncer.NewImages(syncer.Checker(checker), func() { loop.Trigger() }, c.Images.Recheck, time.Now)
	images.Panics = caught
	store := kube.New(mgr.GetCache(), mgr.GetClient(), mgr.GetEventRecorder("keelson-policy-sync"), c.Snapshot)
	loop = syncer.New(syncer.Options{
		Kubernetes: store,
		SPIRE:      spire, Images: images.Results, Log: log, Metrics: counters, Now: time.Now,
		Resync: c.Resync, Debounce: c.Debounce, Timeout: c.SPIRE.Timeout, ReadTimeout: readTimeout,
		SPIREFresh: min(c.Resync, spireFresh), Patience: min(c.SPIRE.Timeout, 500*time.Millisecond),
		WarmUp: c.Images.Checker.Timeout + 5*time.Second, Memory: memory(mgr, c), History: histories(mgr, c), Panics: caught,
	})
	if err := store.Watch(ctx, mgr.GetCache(), loop.Trigger, caught); err != nil {
		return err
	}
	ready := func(*http.Request) error { return nil }
	if c.LeaderElection.Enabled { // one that has no replicas has no namespace either
		mover := &replicas.Mover{Reader: mgr.GetCache(), Client: mgr.GetClient(), Whoami: whoami(mgr.GetConfig()), Log: log, Now: time.Now}
		if err := mgr.Add(guarded{mover, "moving replicas", caught}); err != nil {
			return err
		}
	}
	return errors.Join(mgr.Add(images), mgr.Add(loop), mgr.AddHealthzCheck("ping", ready),
		mgr.AddReadyzCheck("caches", func(r *http.Request) error {
			if !mgr.GetCache().WaitForCacheSync(r.Context()) {
				return errors.New("the caches are not filled yet")
			}
			return nil
		}),
		mgr.AddReadyzCheck("passes", func(*http.Request) error { return loop.Ready() }))
}

// guarded is a part of the program that every replica runs, and that begins again after a panic.
type guarded struct {
	manager.Runnable
	name   string
	caught *panics.Recorder
}

// Start runs it until ctx ends.
func (g guarded) Start(ctx context.Context) error {
	return g.caught.Loop(ctx, g.name, g.Runnable.Start)
}

// NeedLeaderElection is false, as it is for each of them.
func (g guarded) NeedLeaderElection() bool { return false }

// memory is where replicas leave each other what they know; one that has no replicas has no namespace to keep it in.
func memory(mgr manager.Manager, c syncconfig.Config) syncer.Memory {
	if !c.LeaderElection.Enabled {
		return nil
	}
	return kube.NewMemory(mgr.GetAPIReader(), mgr.GetClient(), c.LeaderElection.Namespace)
}

// histories is where it is kept which images workloads ran; one that has no namespace keeps nothing.
func histories(mgr manager.Manager, c syncconfig.Config) syncer.HistoryStore {
	if !c.LeaderElection.Enabled {
		return nil
	}
	return kube.NewHistory(mgr.GetAPIReader(), mgr.GetClient(), c.LeaderElection.Namespace)
}

// whoami asks the API server by which name it knows this program.
func whoami(config *rest.Config) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		api, err := authenticationv1client.NewForConfig(config)
		if err != nil {
			return "", err
		}
		review, err := api.SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if err != nil {
			return "", err
		}
		return review.Status.UserInfo.Username, nil
	}
}

func restConfig(kubeconfig string) (*rest.Config, error) {
	config, err := rest.InClusterConfig()
	if kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	config.QPS = -1 // the API server's priority and fairness is the limit: a client-side one would delay revocations
	config.UserAgent = "keelson-policy-sync"
	return config, nil
}

// dataPlanes settles which optional APIs are used. One that is wanted and not there is never passed over in silence.
func dataPlanes(client discovery.DiscoveryInterface, c *syncconfig.Config, log *slog.Logger) error {
	found, err := kube.Discover(client)
	if err != nil {
		return err
	}
	c.Snapshot.Absent, c.Snapshot.CalicoDefinitions = found.Absent, found.CalicoDefinitions
	var problems []error
	for _, plane := range []struct {
		name, protects string
		want           syncconfig.Presence
		there          bool
		use            *bool
	}{
		{"calico", "L4", c.Calico, found.Calico, &c.Snapshot.Calico},
		{"istio", "L7 and mutual TLS", c.Istio, found.Istio, &c.Snapshot.Istio},
	} {
		*plane.use = plane.there && plane.want != syncconfig.Off
		switch {
		case plane.want == syncconfig.Required && !plane.there:
			problems = append(problems, fmt.Errorf("configuration says %s: required, but the API server does not serve its API", plane.name))
		case !*plane.use:
			log.Warn("data plane is not used: pods are not protected there", "plane", plane.name, "protects", plane.protects, "served", plane.there)
		}
	}
	return errors.Join(problems...)
}

// newManager makes a manager; without a lock it makes one of its own.
func newManager(config *rest.Config, c syncconfig.Config, lock resourcelock.Interface) (manager.Manager, error) {
	scheme, err := kube.Scheme()
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	renew, retry := c.LeaderElection.LeaseDuration*2/3, c.LeaderElection.LeaseDuration/7
	mgr, err := manager.New(config, manager.Options{
		Scheme: scheme, Cache: kube.CacheOptions(c.Snapshot),
		Metrics: metricsserver.Options{BindAddress: c.Metrics}, HealthProbeBindAddress: c.Health,
		LeaderElection: c.LeaderElection.Enabled, LeaderElectionID: c.LeaderElection.Name,
		LeaderElectionNamespace: c.LeaderElection.Namespace, LeaderElectionReleaseOnCancel: true,
		LeaderElectionResourceLockInterface: lock,
		LeaseDuration:                       &c.LeaderElection.LeaseDuration, RenewDeadline: &renew, RetryPeriod: &retry,
	})
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	return mgr, nil
}
