package main

import (
	"context"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/kube"
)

// running is what the cluster tells of whether policy-sync runs.
type running struct {
	at time.Time
	// heartbeat is when policy-sync last wrote that its passes succeed; zero when it never did.
	heartbeat time.Time
	// holder holds the lease, as long as it has renewed it within duration.
	holder   string
	renewed  time.Time
	duration time.Duration
	// unread says why the lease or the heartbeat could not be read.
	unread string
}

// overdue is after how long without a heartbeat, which comes every minute, passes do not succeed.
const overdue = 3 * time.Minute

// readRunning reads policy-sync's lease and heartbeat.
func readRunning(ctx context.Context, api kubernetes.Interface, namespace string, at time.Time) *running {
	r := &running{at: at}
	lease, err := api.CoordinationV1().Leases(namespace).Get(ctx, v1alpha1.LeaseName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		lease = &coordinationv1.Lease{} // nobody ever led
	} else if err != nil {
		r.unread = fmt.Sprintf("Lease %s/%s: %v", namespace, v1alpha1.LeaseName, err)
		return r
	}
	if s := lease.Spec; s.HolderIdentity != nil && s.RenewTime != nil && s.LeaseDurationSeconds != nil {
		r.holder, r.renewed, r.duration = *s.HolderIdentity, s.RenewTime.Time, time.Duration(*s.LeaseDurationSeconds)*time.Second
	}
	beat, err := api.CoreV1().ConfigMaps(namespace).Get(ctx, kube.HeartbeatName, metav1.GetOptions{})
	if err != nil {
		return r
	}
	r.heartbeat, _ = time.Parse(time.RFC3339, beat.Data["lastSynced"]) // what is no time is as good as none
	return r
}

// fault says why nothing is to be expected of policy-sync now, or nothing.
func (r *running) fault() string {
	if r.unread != "" {
		return "whether policy-sync runs cannot be told: " + r.unread
	}
	beat := "it never had a heartbeat"
	if !r.heartbeat.IsZero() {
		beat = "its heartbeat is from " + stamp(r.heartbeat)
	}
	switch {
	case r.holder == "":
		return "policy-sync does not run: nobody holds its lease, and " + beat
	case r.at.Sub(r.renewed) > 2*r.duration:
		return fmt.Sprintf("policy-sync does not run: its lease was last renewed at %s, and %s", stamp(r.renewed), beat)
	case r.heartbeat.IsZero() || r.at.Sub(r.heartbeat) > overdue:
		return "policy-sync runs, but no pass has succeeded lately (its log and its policies' status say why): " + beat
	}
	return ""
}
