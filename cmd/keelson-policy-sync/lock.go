package main

import (
	"context"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/record"

	"github.com/keelson-project/keelson/policy-sync/leadership"
	"github.com/keelson-project/keelson/policy-sync/syncconfig"
)

// lock is the lease under the rules about who leads, where our own SVID is what opens. Both are nil where it is not: over the SPIRE
// server's socket every replica can do the same.
func lock(ctx context.Context, config *rest.Config, c syncconfig.Config, svid leadership.SVID) (resourcelock.Interface, *leadership.Rules, error) {
	l := c.LeaderElection
	if !l.Enabled || c.SPIRE.WorkloadAPI == "" || c.SPIRE.Address == "" {
		return nil, nil, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, nil, fmt.Errorf("leader election: %w", err)
	}
	config = rest.AddUserAgent(config, "leader-election")
	config.Timeout = max(l.LeaseDuration/3, time.Second) // half of what a renewal may take: no question that hangs loses the lease
	api, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, nil, fmt.Errorf("kubernetes: %w", err)
	}
	id := host + "_" + string(uuid.NewUUID())
	events := record.NewBroadcaster(record.WithContext(ctx))
	events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: api.CoreV1().Events(l.Namespace)})
	rules := leadership.New(api.CoordinationV1(), leadership.Options{Identity: id, LeaseDuration: l.LeaseDuration, SVID: svid, Now: time.Now})
	return &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Namespace: l.Namespace, Name: l.Name}, Client: rules,
		LockConfig: resourcelock.ResourceLockConfig{Identity: id, EventRecorder: events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: id})},
	}, rules, nil
}
