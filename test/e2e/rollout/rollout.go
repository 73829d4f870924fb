// Package rollout is a scenario: what an ordinary cluster does all day, under traffic that policy allows.
package rollout

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"

	"github.com/keelson-project/keelson/test/e2e/lives"
	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
)

// Proves is what the scenario shows.
const Proves = "a rolling update, a graceful deletion, an in-place resize, a toleration, kubectl debug with a signed image, init containers that call peers, a native sidecar, a Job and a crash loop cut no connection, deny nothing that policy allows and cost no label; kubectl debug with an unsigned image does"

// Play returns a scenario whose Deployment has that many pods.
func Play(pods int) func(context.Context, *stage.Stage, *script.Script) error {
	return func(ctx context.Context, s *stage.Stage, t *script.Script) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()                                        // ends what is held
		if err := enter(ctx, s, t, int32(pods)); err != nil { // #nosec G115 -- a handful
			return err
		}
		w, err := lives.Start(ctx, s, namespace)
		if err != nil {
			return err
		}
		defer w.Stop()
		address, err := s.Address(ctx, keeper, stage.TCPPort)
		if err != nil {
			return err
		}
		control := &way{from: walker, name: "control", target: fmt.Sprintf("tcp:%s.%s:%d", milepost.Name, milepost.Namespace, stage.TCPPort)}
		ways := []*way{{from: reader, name: "the Service of shelf", target: service}, {from: reader, name: keeper.String(), target: "tcp:" + address}}
		if err := during(ctx, s, append(ways, control), func(ctx context.Context) error {
			for _, play := range []func(context.Context, *stage.Stage, *script.Script) error{deleted, changed, rolled} {
				if err := play(ctx, s, t); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
		for _, one := range ways {
			one.judge(t, control)
		}
		lost, seen, err := w.Losses(nil)
		if err != nil {
			return err
		}
		t.Expect(len(lost) == 0, "no pod that lives lost its trust label, and no address of one was revoked", "%d labels were seen to come: %v", seen, lost)
		if err := unsigned(ctx, s, t, w); err != nil {
			return err
		}
		return leave(ctx, s)
	}
}

// enter brings everybody onto the stage who is there from the beginning.
func enter(ctx context.Context, s *stage.Stage, t *script.Script, pods int32) error {
	if err := s.CreateTeam(ctx, team); err != nil {
		return err
	}
	if err := s.Cluster.Apply(ctx, []byte(policies), []byte(milepostService)); err != nil {
		return err
	}
	if _, err := s.Kubernetes.AppsV1().Deployments(namespace).Create(ctx, shelf(s, pods), metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("rollout: %w", err)
	}
	if err := create(ctx, s, keeperPod(s)); err != nil {
		return err
	}
	if err := s.CreateReady(ctx, reader, walker, milepost); err != nil {
		return err
	}
	if err := s.PodReady(ctx, keeper.Namespace, keeper.Name, time.Minute); err != nil {
		return err
	}
	if err := s.Attested(ctx, reader, keeper); err != nil {
		return err
	}
	if err := available(ctx, s); err != nil {
		return err
	}
	address, err := s.Address(ctx, keeper, stage.TCPPort)
	if err != nil {
		return err
	}
	for _, target := range []string{strings.TrimPrefix(service, "tcp:"), address} {
		if err := s.Until(ctx, time.Minute, reader.String()+" is served by "+target, func(ctx context.Context) error {
			try, err := s.Dial(ctx, reader, target)
			if err == nil && !try.OK {
				err = errors.New(try.Error)
			}
			return err
		}); err != nil {
			return err
		}
	}
	t.Say("%d pods of shelf, %s and %s are attested", pods, keeper, reader)
	return nil
}

// leave takes away what enter brought.
func leave(ctx context.Context, s *stage.Stage) error {
	if err := s.Cluster.Remove(ctx, []byte(milepostService)); err != nil {
		return err
	}
	if err := s.Delete(ctx, walker, milepost); err != nil {
		return err
	}
	if err := s.Kubernetes.CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("rollout: %w", err)
	}
	return nil
}

func create(ctx context.Context, s *stage.Stage, p *corev1.Pod) error {
	if _, err := s.Kubernetes.CoreV1().Pods(p.Namespace).Create(ctx, p, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("rollout: pod %s: %w", p.Name, err)
	}
	return nil
}

// available waits until the Deployment's pods are those of its template, all ready, and no others there.
func available(ctx context.Context, s *stage.Stage) error {
	return s.Until(ctx, 5*time.Minute, "the Deployment is as its template says", func(ctx context.Context) error {
		d, err := s.Kubernetes.AppsV1().Deployments(namespace).Get(ctx, "shelf", metav1.GetOptions{})
		if err != nil {
			return err
		}
		want := *d.Spec.Replicas
		if st := d.Status; st.ObservedGeneration < d.Generation || st.UpdatedReplicas != want || st.Replicas != want || st.AvailableReplicas != want {
			return fmt.Errorf("%d pods, %d of them new, %d available, want %d", st.Replicas, st.UpdatedReplicas, st.AvailableReplicas, want)
		}
		return nil
	})
}

// deleted: a pod is deleted with grace, and the connection to it lives as long as its preStop hook.
func deleted(ctx context.Context, s *stage.Stage, t *script.Script) error {
	pods, err := s.Pods(ctx, namespace, "app=shelf")
	if err != nil {
		return err
	}
	victim := pods[0]
	h, err := hold(ctx, s, "deleted", fmt.Sprintf("%s:%d", victim.Status.PodIP, stage.TCPPort))
	if err != nil {
		return err
	}
	begun := time.Now()
	if err := s.Kubernetes.CoreV1().Pods(namespace).Delete(ctx, victim.Name, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("rollout: %w", err)
	}
	end, err := h.wait(ctx)
	if err != nil {
		return err
	}
	lived := time.Unix(0, end.At).Sub(begun)
	t.Expect(lived > (preStop-1)*time.Second, "a connection to a pod that is deleted with grace lives until the pod ends",
		"%.1f s after the deletion, preStop sleeps %d s, %d echoes; then: %s", lived.Seconds(), preStop, end.Echoes, end.Error)
	return nil
}

// change is something that is done to a pod that runs.
type change struct {
	what string
	do   func(context.Context) error
}

// changed: what may be done to a pod while it runs.
func changed(ctx context.Context, s *stage.Stage, t *script.Script) error {
	address, err := s.Address(ctx, keeper, stage.TCPPort)
	if err != nil {
		return err
	}
	h, err := hold(ctx, s, "changed", address)
	if err != nil {
		return err
	}
	pods := s.Kubernetes.CoreV1().Pods(namespace)
	for _, c := range []change{
		{"an in-place resize", func(ctx context.Context) error {
			p, err := s.GetPod(ctx, namespace, keeper.Name)
			if err != nil {
				return err
			}
			p.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU] = resource.MustParse("20m")
			_, err = pods.UpdateResize(ctx, keeper.Name, p, metav1.UpdateOptions{})
			return err
		}},
		{"a toleration added", func(ctx context.Context) error {
			p, err := s.GetPod(ctx, namespace, keeper.Name)
			if err != nil {
				return err
			}
			p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: "example.org/maintenance", Operator: corev1.TolerationOpExists})
			_, err = pods.Update(ctx, p, metav1.UpdateOptions{})
			return err
		}},
		{"kubectl debug with a signed image", func(ctx context.Context) error {
			return s.Debug(ctx, keeper, s.Image(stage.Workload).Reference())
		}},
	} {
		// Its kubelet and policy-sync write the pod as well.
		if err := retry.RetryOnConflict(retry.DefaultBackoff, func() error { return c.do(ctx) }); err != nil {
			return fmt.Errorf("rollout: %s: %w", c.what, err)
		}
		if err := observed(ctx, s); err != nil {
			return err
		}
		t.Say("%s: %s has taken it", c.what, keeper)
	}
	if err := debugRuns(ctx, s); err != nil {
		return err
	}
	sleep(ctx, 2*time.Second) // what follows from the last of them would be there by now
	end, err := h.end(ctx, s)
	if err != nil {
		return err
	}
	t.Expect(end.Open, "a connection to a pod that is resized, given a toleration and debugged with a signed image goes on", "%d echoes %s", end.Echoes, end.Error)
	return nil
}

// observed waits until the kubelet has answered to the pod's newest spec.
func observed(ctx context.Context, s *stage.Stage) error {
	return s.Until(ctx, time.Minute, "the kubelet has seen the change", func(ctx context.Context) error {
		p, err := s.GetPod(ctx, namespace, keeper.Name)
		if err == nil && p.Status.ObservedGeneration < p.Generation {
			err = fmt.Errorf("generation %d, observed %d", p.Generation, p.Status.ObservedGeneration)
		}
		return err
	})
}

func debugRuns(ctx context.Context, s *stage.Stage) error {
	return s.Until(ctx, time.Minute, "the debug container runs", func(ctx context.Context) error {
		p, err := s.GetPod(ctx, namespace, keeper.Name)
		if err != nil {
			return err
		}
		for _, c := range p.Status.EphemeralContainerStatuses {
			if c.State.Running != nil {
				return nil
			}
		}
		return fmt.Errorf("%+v", p.Status.EphemeralContainerStatuses)
	})
}

// rolled: the Deployment is updated, and others come meanwhile.
func rolled(ctx context.Context, s *stage.Stage, t *script.Script) error {
	begun := time.Now()
	patch := fmt.Appendf(nil, `{"spec":{"template":{"metadata":{"annotations":{"example.org/rolled":%q}}}}}`, begun.Format(time.RFC3339Nano))
	if _, err := s.Kubernetes.AppsV1().Deployments(namespace).Patch(ctx, "shelf", types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("rollout: %w", err)
	}
	calls := []corev1.Container{waits(s, "calls")}
	for _, p := range []*corev1.Pod{object(first, calls, container(s, "main", "pause")), sidecarPod(s), crashingPod(s)} {
		if err := create(ctx, s, p); err != nil {
			return err
		}
	}
	if _, err := s.Kubernetes.BatchV1().Jobs(namespace).Create(ctx, countJob(s), metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("rollout: %w", err)
	}
	for _, p := range []stage.Pod{first, beside} {
		err := s.PodReady(ctx, p.Namespace, p.Name, 2*time.Minute)
		t.Expect(err == nil, fmt.Sprintf("%s starts, whose init container has to reach the shelf first", p), "%v", err)
	}
	err := s.Until(ctx, 2*time.Minute, "the Job completes", func(ctx context.Context) error {
		j, err := s.Kubernetes.BatchV1().Jobs(namespace).Get(ctx, job, metav1.GetOptions{})
		if err == nil && j.Status.Succeeded == 0 {
			err = fmt.Errorf("%d active, %d failed", j.Status.Active, j.Status.Failed)
		}
		return err
	})
	t.Expect(err == nil, "a Job whose pod has to reach the shelf completes", "%v", err)
	if err := loops(ctx, s, t); err != nil {
		return err
	}
	if err := available(ctx, s); err != nil {
		return err
	}
	t.Measure("rolling update", time.Since(begun))
	t.Say("the rolling update is complete after %.1f s", time.Since(begun).Seconds())
	return s.Attested(ctx, first, beside, crashing)
}

// loops: a second container that crashes costs the pod nothing.
func loops(ctx context.Context, s *stage.Stage, t *script.Script) error {
	if err := s.Attested(ctx, crashing); err != nil {
		return err
	}
	address, err := s.Address(ctx, crashing, stage.TCPPort)
	if err != nil {
		return err
	}
	h, err := hold(ctx, s, "crashing", address)
	if err != nil {
		return err
	}
	restarts := func(ctx context.Context) (n int32, err error) {
		p, err := s.GetPod(ctx, namespace, crashing.Name)
		if err != nil {
			return 0, err
		}
		for _, c := range p.Status.ContainerStatuses {
			n += c.RestartCount
		}
		return n, nil
	}
	before, err := restarts(ctx)
	if err != nil {
		return err
	}
	if err := s.Until(ctx, 50*time.Second, "the second container crashes twice", func(ctx context.Context) error {
		n, err := restarts(ctx)
		if err == nil && n < before+2 {
			err = fmt.Errorf("%d restarts, %d before", n, before)
		}
		return err
	}); err != nil {
		return err
	}
	end, err := h.end(ctx, s)
	if err != nil {
		return err
	}
	t.Expect(end.Open, "a connection to a pod whose second container crashes again and again goes on", "%d echoes %s", end.Echoes, end.Error)
	return nil
}

// unsigned shows that what was watched for can be seen: an unsigned debug container closes.
func unsigned(ctx context.Context, s *stage.Stage, t *script.Script, w *lives.Watch) error {
	address, err := s.Address(ctx, crashing, stage.TCPPort)
	if err != nil {
		return err
	}
	h, err := hold(ctx, s, "unsigned", address)
	if err != nil {
		return err
	}
	if err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		return s.Debug(ctx, crashing, s.Image(stage.Unsigned).Reference())
	}); err != nil {
		return err
	}
	if err := s.Until(ctx, time.Minute, "the trust label is gone", func(ctx context.Context) error { return s.Unlabelled(ctx, crashing) }); err != nil {
		return err
	}
	t.Expect(true, "control: kubectl debug with an unsigned image costs a pod its label", "%s", s.Why(ctx, crashing))
	sleep(ctx, 5*time.Second)
	end, err := h.end(ctx, s)
	if err != nil {
		return err
	}
	t.Expect(!end.Open, "control: the connection to it is cut", "%d echoes, then: %s", end.Echoes, end.Error)
	try, err := s.Dial(ctx, reader, address)
	if err != nil {
		return err
	}
	t.Expect(stage.Dropped(try), "control: nobody reaches it any more", "%s: %s", try.Kind, try.Error)
	err = s.Until(ctx, 20*time.Second, "the watch has seen both", func(context.Context) error {
		lost, _, err := w.Losses(nil)
		if err == nil && len(lost) < 2 {
			err = fmt.Errorf("%v", lost)
		}
		return err
	})
	t.Expect(err == nil, "control: what watched for losses has seen the label and the address go", "%v", err)
	return ctx.Err()
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
