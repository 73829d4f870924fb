package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/syncconfig"
)

// cleanup takes away what policy-sync wrote. Three things keep a running policy-sync from writing it again: its Deployment is
// deleted, its pods are waited for, and then its lease is taken and held. The Deployment is deleted and not scaled, so that an
// installation that goes on after all finds nothing to disagree with; the lease alone would do against pods, but not after this
// program has ended.
type cleanup struct {
	deployment   string
	withoutSPIRE bool
	dryRun       bool
	wait         time.Duration
	out          io.Writer
}

// nameLabel is the label by which the chart's pods are known.
const nameLabel = "app.kubernetes.io/name"

func cleanupCommand(path *string) *cobra.Command {
	c := &cleanup{}
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Take away everything that policy-sync wrote; this OPENS what Keelson had closed",
		Long: "Take away the SPIRE entries, the labels of pods and nodes, the taint, and the Calico and Istio objects that policy-sync wrote, and\n" +
			"nothing else. First everything that lets in goes, then everything that keeps out, so that an end in the middle leaves doors\n" +
			"closed, not open; run it again then. It waits until no policy-sync leads, and keeps others from leading meanwhile.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := syncconfig.Load(*path)
			if err != nil {
				return err
			}
			c.out = cmd.OutOrStdout()
			return c.run(cmd.Context(), config)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.deployment, "delete-deployment", "", "Deployment of policy-sync, in the namespace of its lease, to delete first; its pods bear "+nameLabel+" with its name")
	f.BoolVar(&c.withoutSPIRE, "without-spire", false, "leave SPIRE entries alone, because the SPIRE server is gone")
	f.BoolVar(&c.dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.DurationVar(&c.wait, "wait", 2*time.Minute, "how long to wait for policy-sync to end, and then for its lease")
	return cmd
}

const opens = `WARNING: this OPENS what Keelson had closed. Pods that were never attested will reach those that were protected, plain text will be
accepted where mutual TLS was enforced, and revoked addresses are let in again. Namespaces keep their mode label and TrustPolicies and
NodeTrusts stay, but nothing acts on them.
`

func (c *cleanup) run(ctx context.Context, config syncconfig.Config) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	ctrl.SetLogger(logr.FromSlogHandler(log.Handler()))
	klog.SetSlogLogger(log)
	access, err := restConfig(config.Kubeconfig)
	if err != nil {
		return err
	}
	cluster, err := kubernetes.NewForConfig(access)
	if err != nil {
		return fmt.Errorf("kubernetes: %w", err)
	}
	taker, err := newTaker(access, cluster.Discovery(), config, c)
	if err != nil {
		return err
	}
	if c.dryRun {
		return errors.Join(taker.show(ctx), taker.close())
	}
	if err := c.say(opens); err != nil {
		return errors.Join(err, taker.close())
	}
	err = c.stop(ctx, cluster, config.LeaderElection.Namespace)
	if err == nil {
		err = c.lead(ctx, access, config.LeaderElection, taker.take)
	}
	if err == nil {
		err = errors.Join(c.dropMemory(ctx, cluster, config.LeaderElection.Namespace), c.dropLease(ctx, cluster, config.LeaderElection))
	}
	return errors.Join(err, taker.close())
}

func (c *cleanup) say(format string, args ...any) error {
	_, err := fmt.Fprintf(c.out, format, args...)
	return err
}

// stop deletes policy-sync's Deployment and waits until the last of its pods is gone. A pod that stays (its node is away) might
// still write: then nothing is taken away, and the doors stay closed.
func (c *cleanup) stop(ctx context.Context, cluster kubernetes.Interface, namespace string) error {
	if c.deployment == "" {
		return nil
	}
	background := metav1.DeletePropagationBackground
	err := cluster.AppsV1().Deployments(namespace).Delete(ctx, c.deployment, metav1.DeleteOptions{PropagationPolicy: &background})
	if client.IgnoreNotFound(err) != nil { // an earlier try may have deleted it
		return fmt.Errorf("cleanup: delete Deployment %s/%s: %w", namespace, c.deployment, err)
	}
	if err := c.say("deleted Deployment %s/%s\n", namespace, c.deployment); err != nil {
		return err
	}
	var left []corev1.Pod
	err = wait.PollUntilContextTimeout(ctx, 250*time.Millisecond, c.wait, true, func(ctx context.Context) (bool, error) {
		pods, err := cluster.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: nameLabel + "=" + c.deployment})
		if err != nil {
			return false, err
		}
		left = pods.Items
		return len(left) == 0, nil
	})
	if wait.Interrupted(err) && len(left) > 0 {
		return fmt.Errorf("cleanup: pod %s/%s of policy-sync is still there after %s; nothing was taken away. Delete it (when its node is away: kubectl delete pod --force), then try again",
			namespace, left[0].Name, c.wait)
	}
	if err != nil {
		return fmt.Errorf("cleanup: wait for the pods of policy-sync: %w", err)
	}
	return nil
}

// lead takes policy-sync's lease, does the work while it holds it, and gives it back.
func (c *cleanup) lead(ctx context.Context, access *rest.Config, l syncconfig.LeaderElection, work func(context.Context) error) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("cleanup: %w", err)
	}
	lock, err := resourcelock.NewFromKubeconfig(resourcelock.LeasesResourceLock, l.Namespace, l.Name,
		resourcelock.ResourceLockConfig{Identity: fmt.Sprintf("cleanup-%s-%d", host, os.Getpid())}, access, l.LeaseDuration*2/3)
	if err != nil {
		return fmt.Errorf("cleanup: lease: %w", err)
	}
	until, cancel := context.WithCancel(ctx)
	defer cancel()
	result, tooLong := make(chan error, 1), make(chan struct{})
	patience := time.AfterFunc(c.wait, func() {
		close(tooLong)
		cancel()
	})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: l.LeaseDuration, RenewDeadline: l.LeaseDuration * 2 / 3, RetryPeriod: l.LeaseDuration / 7, ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			// Its context ends when the lease is lost.
			OnStartedLeading: func(ctx context.Context) {
				defer cancel()
				if patience.Stop() {
					result <- work(ctx)
				}
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("cleanup: lease: %w", err)
	}
	elector.Run(until)
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-tooLong:
		return fmt.Errorf("cleanup: lease %s/%s is held by %q for longer than %s, so a policy-sync still runs; nothing was taken away. Stop it, then try again",
			l.Namespace, l.Name, elector.GetLeader(), c.wait)
	}
}

// dropMemory deletes the ConfigMaps in which policy-sync kept what a replica that takes over has to know. Where that is not
// permitted they stay, and that is said: they open nothing.
func (c *cleanup) dropMemory(ctx context.Context, cluster kubernetes.Interface, namespace string) error {
	for _, name := range kube.MemoryNames() {
		err := cluster.CoreV1().ConfigMaps(namespace).Delete(ctx, name, metav1.DeleteOptions{})
		switch {
		case err == nil || apierrors.IsNotFound(err):
		case apierrors.IsForbidden(err):
			return c.say("ConfigMaps %s/%s and others stay: no right to delete them\n", namespace, kube.HeartbeatName)
		default:
			return fmt.Errorf("cleanup: delete ConfigMap %s/%s: %w", namespace, name, err)
		}
	}
	return nil
}

// dropLease deletes the lease, which nobody needs any more. Where that is not permitted it stays, and that is said.
func (c *cleanup) dropLease(ctx context.Context, cluster kubernetes.Interface, l syncconfig.LeaderElection) error {
	leases := cluster.CoordinationV1().Leases(l.Namespace)
	lease, err := leases.Get(ctx, l.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("cleanup: lease: %w", err)
	}
	if holder := lease.Spec.HolderIdentity; holder != nil && *holder != "" {
		return fmt.Errorf("cleanup: %s leads again and will write everything anew: stop it, then try again", *holder)
	}
	err = leases.Delete(ctx, l.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &lease.ResourceVersion}})
	if apierrors.IsForbidden(err) {
		return c.say("lease %s/%s stays: no right to delete it\n", l.Namespace, l.Name)
	}
	if err != nil {
		return fmt.Errorf("cleanup: delete lease %s/%s: %w", l.Namespace, l.Name, err)
	}
	return nil
}
