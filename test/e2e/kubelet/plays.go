package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

func host(address string) string {
	h, _, _ := strings.Cut(address, ":")
	return h
}

func revoked(ctx context.Context, s *stage.Stage, address string) (bool, error) {
	all, err := s.Revoked(ctx)
	return slices.Contains(all, address+"/32"), err
}

func raw(merge string) client.Patch { return client.RawPatch(types.MergePatchType, []byte(merge)) }

func (o *side) node() *corev1.Node { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: o.name}} }

// writes: what the API refuses.
func (o *side) writes(ctx context.Context, _ *stage.Stage, t *script.Script) error {
	for _, c := range []struct{ what, merge string }{
		{"any address as its pods' (podCIDR 0.0.0.0/0)", `{"spec":{"podCIDR":"0.0.0.0/0","podCIDRs":["0.0.0.0/0"]}}`},
		{"another verdict label on its Node", `{"metadata":{"labels":{"` + v1alpha1.NodeVerdictLabel + `":"other"}}}`},
		{"a tag's label on its Node", `{"metadata":{"labels":{"` + v1alpha1.NodeTagPrefix + `forged":"DE"}}}`},
		{"other taints on its Node", `{"spec":{"taints":[{"key":"example.org/mine","effect":"NoExecute"}]}}`},
	} {
		err := o.kubelet.Patch(ctx, o.node(), raw(c.merge))
		t.Expect(apierrors.IsForbidden(err) || apierrors.IsInvalid(err), fmt.Sprintf("the kubelet of %s: %s: refused", o.name, c.what), "%s", told(err))
	}
	return nil
}

// nodeAddresses: the machine says that another's pod's address and its own pod's are the machine's.
func (o *side) nodeAddresses(ctx context.Context, s *stage.Stage, t *script.Script) error {
	ledger, err := s.Address(ctx, stage.Ledger, stage.TCPPort)
	if err != nil {
		return err
	}
	before := o.node()
	if err := o.kubelet.Get(ctx, client.ObjectKeyFromObject(before), before); err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	addresses := append(before.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: host(ledger)},
		corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: o.own})
	text, err := json.Marshal(map[string]any{"status": map[string]any{"addresses": addresses}})
	if err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	spared := 0
	times, err := again(ctx, 6*time.Second, func(ctx context.Context) error {
		if err := o.kubelet.Status().Patch(ctx, o.node(), raw(string(text))); err != nil {
			return err
		}
		ok, err := revoked(ctx, s, o.own)
		if !ok && o.name == refused {
			spared++
		}
		return err
	})
	if err != nil {
		return err
	}
	what := fmt.Sprintf("the kubelet of %s says that the machine has the address of %s and of its own pod", o.name, stage.Ledger)
	t.Expect(spared == 0, what+": nothing is spared", "said %d times; %d times its pod's address was not among the revoked ones", times, spared)
	text, err = json.Marshal(map[string]any{"status": map[string]any{"addresses": before.Status.Addresses}})
	if err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	if err := o.kubelet.Status().Patch(ctx, o.node(), raw(string(text))); err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	return s.Control(ctx, t, what+": it is reached as before", dials(s, stage.Mirror, ledger))
}

// podAddress: its pod is said to have the address of another machine's pod, or of another pod of its own machine.
func (o *side) podAddress(ctx context.Context, s *stage.Stage, t *script.Script) error {
	victims := []stage.Pod{stage.Ledger}
	if o.name == stage.Mirror.Node {
		victims = append(victims, stage.Mirror)
	}
	for _, victim := range victims {
		address, err := s.Address(ctx, victim, stage.TCPPort)
		if err != nil {
			return err
		}
		merge := fmt.Sprintf(`{"status":{"podIP":%[1]q,"podIPs":[{"ip":%[1]q}]}}`, host(address))
		claimant := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: o.claimant.Namespace, Name: o.claimant.Name}}
		cut := 0
		claim := func(ctx context.Context) error {
			if err := o.kubelet.Status().Patch(ctx, claimant.DeepCopy(), raw(merge)); err != nil {
				return err
			}
			ok, err := revoked(ctx, s, host(address))
			if ok {
				cut++
			}
			return err
		}
		times, err := again(ctx, 4*time.Second, claim)
		if err != nil {
			return err
		}
		what := fmt.Sprintf("the kubelet of %s says that its pod has the address of %s", o.name, victim)
		t.Expect(cut == 0, what+": it is not revoked", "said %d times, %d times it was among the revoked ones", times, cut)
		if err := s.Control(ctx, t, what+": it is reached as before", dials(s, other(victim), address)); err != nil {
			return err
		}
		why, err := o.answer(ctx, s, host(address), claim)
		t.Expect(err == nil, what+": policy-sync says that it does not believe that", "%s %v", why, err)
	}
	return ctx.Err()
}

// other is who may call a pod.
func other(p stage.Pod) stage.Pod {
	if p.Name == stage.Mirror.Name {
		return stage.Ledger
	}
	return stage.Mirror
}

func dials(s *stage.Stage, from stage.Pod, address string) func(context.Context) (said.Try, error) {
	return func(ctx context.Context) (said.Try, error) { return s.Dial(ctx, from, address) }
}

// answer makes a claim until policy-sync has said something to it.
func (o *side) answer(ctx context.Context, s *stage.Stage, address string, claim func(context.Context) error) (why string, err error) {
	err = s.Until(ctx, 30*time.Second, "policy-sync's answer", func(ctx context.Context) error {
		if err := claim(ctx); err != nil {
			return err
		}
		if o.name == refused {
			why, err = s.Found(ctx, address, "not its own to give")
			return err
		}
		if why = s.Why(ctx, o.claimant); !strings.Contains(why, "address "+address) {
			return fmt.Errorf("the policy says %q", why)
		}
		return nil
	})
	return why, err
}

// How many mirror pods there are, and how many containers each says that it has.
const (
	mirrorPods = 5
	invented   = 1000
)

// selecting has a policy concern the mirror pods.
const selecting = `
apiVersion: trust.keelson.io/v1alpha1
kind: TrustPolicy
metadata: {name: static, namespace: bank}
spec:
  workloads: {selector: {matchLabels: {app: static}}}
  require: {image: {verifiedBy: [release-key]}}
`

// mirrors: the machine says that it runs pods from files of its own.
func (o *side) mirrors(ctx context.Context, s *stage.Stage, t *script.Script) (err error) {
	if err := s.Cluster.Apply(ctx, []byte(selecting)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.removeMirrors(ctx, s)) }()
	node := o.node()
	if err := o.kubelet.Get(ctx, client.ObjectKeyFromObject(node), node); err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	status, err := inventedStatus()
	if err != nil {
		return err
	}
	created, written, labelled, why := 0, 0, 0, ""
	var refusals []error
	if _, err := again(ctx, 6*time.Second, func(ctx context.Context) error {
		for i := range mirrorPods {
			p := o.mirror(i, node)
			if err := o.kubelet.Create(ctx, p); err == nil {
				created++
			} else if !apierrors.IsAlreadyExists(err) {
				refusals = append(refusals, err)
				continue
			}
			// Where the machine's true kubelet runs, it takes such pods away again.
			if err := o.kubelet.Status().Patch(ctx, p, raw(status)); err == nil {
				written++
			} else if !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				refusals = append(refusals, err)
			}
			if p.Labels[v1alpha1.PodAttestedLabel] != "" {
				labelled++
			}
			if text := s.Why(ctx, stage.Pod{Namespace: p.Namespace, Name: p.Name}); text != "" {
				why = text
			}
		}
		return nil
	}); err != nil {
		return err
	}
	first := ""
	if len(refusals) > 0 {
		first = refusals[0].Error()
	}
	t.Expect(labelled == 0 && (written > 0 || len(refusals) > 0), fmt.Sprintf("the kubelet of %s: mirror pods with %d invented containers each: none gets a label", o.name, invented),
		"%d created, %d statuses written, %d refusals %s; policy-sync says %q", created, written, len(refusals), first, why)
	newcomer := stage.Pod{Namespace: "bank", Name: "newcomer-" + o.name, Account: "teller", Node: "fra-2"}
	begun := time.Now()
	if err := s.CreateReady(ctx, newcomer); err != nil {
		return err
	}
	err = s.Attested(ctx, newcomer)
	t.Expect(err == nil, "a new pod of the namespace is attested as ever", "after %.1f s %v", time.Since(begun).Seconds(), err)
	return s.Delete(ctx, newcomer)
}

func (o *side) mirror(i int, node *corev1.Node) *corev1.Pod {
	yes := true
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "bank", Name: fmt.Sprintf("static-%d-%s", i, o.name), Labels: map[string]string{"app": "static"},
			Annotations:     map[string]string{corev1.MirrorPodAnnotationKey: "00000000000000000000000000000000", "kubernetes.io/config.source": "file"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID, Controller: &yes}},
		},
		Spec: corev1.PodSpec{NodeName: node.Name, Containers: []corev1.Container{{Name: "main", Image: "registry.invalid/none"}}},
	}
}

// inventedStatus is a status patch with many containers that the spec does not have, each with an image of its own.
func inventedStatus() (string, error) {
	statuses := []corev1.ContainerStatus{}
	for i := range invented {
		digest := fmt.Sprintf("registry.invalid/invented@sha256:%064x", i)
		statuses = append(statuses, corev1.ContainerStatus{
			Name: fmt.Sprintf("invented-%d", i), Image: digest, ImageID: digest, ContainerID: fmt.Sprintf("containerd://%064x", i), Ready: true,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
		})
	}
	text, err := json.Marshal(map[string]any{"status": map[string]any{"phase": corev1.PodRunning, "containerStatuses": statuses}})
	if err != nil {
		return "", fmt.Errorf("kubelet: %w", err)
	}
	return string(text), nil
}

func (o *side) removeMirrors(ctx context.Context, s *stage.Stage) error {
	var errs []error
	for i := range mirrorPods {
		now := int64(0)
		err := s.Kubernetes.CoreV1().Pods("bank").Delete(ctx, fmt.Sprintf("static-%d-%s", i, o.name), metav1.DeleteOptions{GracePeriodSeconds: &now})
		if !apierrors.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, s.Cluster.Remove(ctx, []byte(selecting)))...)
}
