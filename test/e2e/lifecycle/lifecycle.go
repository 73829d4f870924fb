// Package lifecycle is a scenario: the chart is upgraded and uninstalled in a cluster that works. It comes last: after it nothing of
// Keelson's enforces.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/keelson-project/keelson/test/e2e/doors"
	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// Proves is what the scenario shows.
const Proves = "helm upgrade while traffic goes on opens nothing and shuts nothing; the chart's own NetworkPolicy is enforced; helm uninstall runs its cleanup in the cluster and leaves nothing but the definitions and what people wrote"

// Outage is how long an allowed path may be shut by an upgrade: nothing of it is in the way of traffic, so this is for a computer that
// is busy with starting pods.
const Outage = 15 * time.Second

// policySync selects policy-sync's pods, and deployment is what makes them.
const (
	policySync = "app.kubernetes.io/name=keelson-policy-sync"
	deployment = "keelson-policy-sync"
	cleanup    = "app.kubernetes.io/name=keelson-cleanup"
)

// Ports of policy-sync, as the chart's values have them.
const (
	metricsPort = 8080
	healthPort  = 8081
)

// Play plays it.
func Play(ctx context.Context, s *stage.Stage, t *script.Script) error {
	all, err := doors.Cast(ctx, s)
	if err != nil {
		return err
	}
	if err := doors.Open(ctx, s, all, time.Minute); err != nil { // whatever came before
		return err
	}
	if err := reached(ctx, s, t, "control: before the upgrade", true); err != nil {
		return err
	}
	if err := doors.During(ctx, s, all, func(ctx context.Context) error { return upgrade(ctx, s, t) }); err != nil {
		return err
	}
	for _, d := range all {
		d.Judge(t, Outage)
	}
	if err := works(ctx, s, t); err != nil {
		return err
	}
	if err := reached(ctx, s, t, "with the chart's NetworkPolicy", false); err != nil {
		return err
	}
	return uninstall(ctx, s, t)
}

// upgraded are the values of the upgrade: other pods, and the chart's NetworkPolicy, with the ports that this cluster has.
func upgraded(s *stage.Stage) (map[string]any, error) {
	api, err := url.Parse(s.Cluster.RESTConfig().Host)
	if err != nil {
		return nil, fmt.Errorf("lifecycle: %w", err)
	}
	_, registry, err := net.SplitHostPort(s.Registry.Host)
	if err != nil {
		return nil, fmt.Errorf("lifecycle: %w", err)
	}
	values := s.Values()
	sync, ok := values["policySync"].(map[string]any)
	if !ok {
		return nil, errors.New("lifecycle: the stage's values have no policySync")
	}
	sync["podAnnotations"] = map[string]any{"example.org/upgraded": "true"}
	values["networkPolicy"] = map[string]any{
		"enabled":    true,
		"apiServer":  map[string]any{"ports": []any{443, number(api.Port())}},
		"registries": map[string]any{"ports": []any{number(registry)}},
	}
	return values, nil
}

func number(text string) int {
	var n int
	_, _ = fmt.Sscan(text, &n) // the chart refuses 0 as a port
	return n
}

// upgrade upgrades, and waits until none but new pods of policy-sync are there.
func upgrade(ctx context.Context, s *stage.Stage, t *script.Script) error {
	values, err := upgraded(s)
	if err != nil {
		return err
	}
	time.Sleep(2 * time.Second) // the doors are being tried by then
	begun := time.Now()
	if err := s.Helm(ctx, "upgrade", values); err != nil {
		return err
	}
	if err := s.Until(ctx, 2*time.Minute, "policy-sync's pods are the new ones", func(ctx context.Context) error {
		d, err := s.Kubernetes.AppsV1().Deployments(stage.Namespace).Get(ctx, deployment, metav1.GetOptions{})
		if err != nil {
			return err
		}
		want := *d.Spec.Replicas
		if st := d.Status; st.ObservedGeneration < d.Generation || st.UpdatedReplicas != want || st.Replicas != want || st.AvailableReplicas != want {
			return fmt.Errorf("%d pods, %d of them new, %d available, want %d", st.Replicas, st.UpdatedReplicas, st.AvailableReplicas, want)
		}
		if d.Spec.Template.Annotations["example.org/upgraded"] == "" {
			return errors.New("the Deployment is the old one")
		}
		return nil
	}); err != nil {
		return err
	}
	took := time.Since(begun)
	t.Measure("helm upgrade until the new pods of policy-sync are ready", took)
	t.Say("upgraded after %.1f s", took.Seconds())
	return nil
}

// works: the new policy-sync attests a new pod, which is let in.
func works(ctx context.Context, s *stage.Stage, t *script.Script) error {
	pod := stage.Pod{Namespace: "bank", Name: "teller-after-upgrade", Account: "teller", Node: "fra-2"}
	if err := s.CreateReady(ctx, pod); err != nil {
		return err
	}
	if err := s.Attested(ctx, pod); err != nil {
		return err
	}
	if err := s.Until(ctx, 30*time.Second, pod.String()+" reaches "+stage.Ledger.String(), func(ctx context.Context) error {
		try, err := s.DialService(ctx, pod, stage.Ledger)
		if err == nil && !try.OK {
			err = errors.New(try.Error)
		}
		return err
	}); err != nil {
		return err
	}
	t.Expect(true, "after the upgrade a new pod is attested and let in", "%s", pod)
	return s.Delete(ctx, pod)
}

// reached: a stranger reads policy-sync's metrics, or does not; that it reaches the health port, which kubelets need from addresses that no
// policy can name, shows that only the policy is in the way.
func reached(ctx context.Context, s *stage.Stage, t *script.Script, when string, metrics bool) error {
	pods, err := s.Pods(ctx, stage.Namespace, policySync)
	if err != nil {
		return err
	}
	for i := range pods {
		if pods[i].DeletionTimestamp != nil {
			continue
		}
		get := func(port int, path string, answers bool) (int, string, bool, error) {
			ask := func(ctx context.Context) (said.Try, error) {
				return s.Get(ctx, stage.Passer, "GET", fmt.Sprintf("http://%s/%s", net.JoinHostPort(pods[i].Status.PodIP, fmt.Sprint(port)), path))
			}
			try, err := ask(ctx)
			if answers && err == nil && try.Status == 0 {
				try, err = s.Answer(ctx, ask)
			}
			return try.Status, try.Error, stage.Dropped(try), err
		}
		status, text, _, err := get(healthPort, "readyz", true)
		if err != nil {
			return err
		}
		t.Expect(status == 200, fmt.Sprintf("control: %s reaches the health port of %s", stage.Passer, pods[i].Name), "status %d %s", status, text)
		status, text, dropped, err := get(metricsPort, "metrics", metrics)
		if err != nil {
			return err
		}
		if metrics {
			t.Expect(status == 200, fmt.Sprintf("%s %s reads the metrics of %s", when, stage.Passer, pods[i].Name), "status %d", status)
		} else {
			t.Expect(dropped, fmt.Sprintf("%s it does not reach the metrics of %s: Felix drops its packets", when, pods[i].Name), "status %d %s", status, text)
		}
	}
	return nil
}

// uninstall uninstalls, and looks at the pod of the chart's hook, which Helm deletes in the end.
func uninstall(ctx context.Context, s *stage.Stage, t *script.Script) error {
	pods, err := s.Kubernetes.CoreV1().Pods(stage.Namespace).Watch(ctx, metav1.ListOptions{LabelSelector: cleanup})
	if err != nil {
		return fmt.Errorf("lifecycle: %w", err)
	}
	succeeded := make(chan string, 1)
	go func() {
		ran := ""
		for e := range pods.ResultChan() {
			if p, ok := e.Object.(*corev1.Pod); ok && e.Type != watch.Deleted && p.Status.Phase == corev1.PodSucceeded {
				ran = fmt.Sprintf("%s on %s", p.Name, p.Spec.NodeName)
			}
		}
		succeeded <- ran
	}()
	begun := time.Now()
	err = s.Helm(ctx, "uninstall", nil)
	pods.Stop()
	ran := <-succeeded
	if err != nil {
		return err
	}
	t.Measure("helm uninstall", time.Since(begun))
	t.Expect(ran != "", "the cleanup's pod ran to its end, with the chart's own rights and under its NetworkPolicy", "%s", ran)
	var left []string
	if err := s.Until(ctx, time.Minute, "nothing is left", func(ctx context.Context) error { // what the release owned goes a little later
		found, err := leftovers(ctx, s)
		if err != nil {
			return err
		}
		if left = found; len(left) > 0 {
			return errors.New(strings.Join(left, ", "))
		}
		return nil
	}); err != nil && len(left) == 0 {
		return err
	}
	t.Expect(len(left) == 0, "nothing is left but the definitions and what people wrote", "%s", strings.Join(left, ", "))
	return nil
}
