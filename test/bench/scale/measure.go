package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

const whatOnePod = "processor time of one pod's change"

// figures are what was measured at one size.
type figures struct {
	*world
	size     size
	options  options
	table    []figure
	quietP99 float64 // seconds from a verdict to the last object, with nothing beside it
}

func (f *figures) add(what string, value float64, unit string, atMost float64, detail string) {
	line := promise(f.size.String(), what, value, unit, atMost, detail)
	f.table = append(f.table, line)
	f.say("%s: %s: %.4g %s %s", f.size, what, value, unit, detail)
}

// operations is how many operations policy-sync says it has done, and on how many pods.
func (w *world) operations(ctx context.Context) (all, failed float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.metrics, nil)
	if err != nil {
		return 0, 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	lines := bufio.NewScanner(io.LimitReader(resp.Body, 16<<20))
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if !ok || !strings.HasPrefix(name, "keelson_policy_sync_operations_total") {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("metrics: %w", err)
		}
		if strings.Contains(name, `result="error"`) {
			failed += n
		} else {
			all += n
		}
	}
	return all, failed, lines.Err()
}

// poll calls check until it says yes, for at most the time given.
func (w *world) poll(ctx context.Context, most, every time.Duration, what string, check func() (bool, error)) error {
	for begun := time.Now(); ; {
		done, err := check()
		if done || time.Since(begun) > most {
			if !done {
				return errors.Join(fmt.Errorf("%s: not within %s", what, most), err)
			}
			return nil
		}
		select {
		case <-w.sync.Done():
			return fmt.Errorf("policy-sync ended:\n%s", w.sync.Tail(10))
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s: %w", what, ctx.Err()), err)
		case <-time.After(every):
		}
	}
}

// quiet waits until policy-sync has done no operation for some seconds, and returns when it did the last one.
func (w *world) quiet(ctx context.Context, still time.Duration) (last time.Time, err error) {
	before := -1.0
	err = w.poll(ctx, 20*time.Minute, 100*time.Millisecond, "policy-sync comes to rest", func() (bool, error) {
		now, _, err := w.operations(ctx)
		if err != nil {
			before, last = -1, time.Now()
			return false, err
		}
		if now != before {
			before, last = now, time.Now()
		}
		return before > 0 && time.Since(last) > still, nil
	})
	return last, err
}

func (w *world) attested(ctx context.Context) (int, error) {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
	err := w.api.List(ctx, list, client.MatchingLabels{v1alpha1.PodAttestedLabel: v1alpha1.True})
	return len(list.Items), err
}

// converge waits for every pod's label. Only at the first size does policy-sync start with all of it there.
func (f *figures) converge(ctx context.Context) error {
	what, begun, limit := "start to converged", f.started, 60.0
	if f.grown.After(f.started) { // policy-sync has worked all the while
		what, begun, limit = "last pod made to converged", f.grown, 0
	}
	have := 0
	err := f.poll(ctx, 20*time.Minute, time.Second, "all pods are attested", func() (bool, error) {
		var err error
		if have, err = f.attested(ctx); err == nil && have < f.size.pods {
			err = fmt.Errorf("%d of %d pods are attested", have, f.size.pods)
		}
		return have == f.size.pods, err
	})
	if err != nil {
		return err
	}
	last, err := f.quiet(ctx, 5*time.Second)
	if err != nil {
		return err
	}
	done, failed, err := f.operations(ctx)
	if err != nil {
		return err
	}
	f.add(what, max(0, last.Sub(begun).Seconds()), "s", limit, fmt.Sprintf("%.0f operations in all, %.0f failed ones", done, failed))
	return nil
}

// rest looks at a world in which nothing happens.
func (f *figures) rest(ctx context.Context) error {
	before, _, err := f.operations(ctx)
	if err != nil {
		return err
	}
	used, begun := f.processor(), time.Now()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(f.options.churn):
	}
	after, _, err := f.operations(ctx)
	f.add("writes at rest", after-before, "", 0, fmt.Sprintf("in %s, a resync every 5 s", f.options.churn))
	f.table[len(f.table)-1].Missed = after != before
	f.add("processor time at rest", 100*(f.processor()-used).Seconds()/time.Since(begun).Seconds(), "% of a core", 0, "")
	return err
}

// processor is the processor time that policy-sync has used.
func (w *world) processor() time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", w.sync.PID()))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * (time.Second / 100) // USER_HZ
}

// memory is the most that policy-sync ever had resident.
func (f *figures) memory(context.Context) error {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", f.sync.PID()))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			limit := 512.0
			if f.size.pods > 20_000 {
				limit = 2048
			}
			f.add("most memory resident so far", kib/1024, "MiB", limit, "")
			return err
		}
	}
	return errors.New("/proc has no VmHWM")
}

// verdicts measures how long a node that is proved bad takes to be closed, one after the other.
func (f *figures) verdicts(ctx context.Context) error {
	times, err := f.closings(ctx)
	if err != nil {
		return err
	}
	f.quietP99 = percentile(times, 0.99)
	limit := 0.5
	if f.size.pods > 20_000 {
		limit = 1
	}
	f.add("verdict to last object, p50", percentile(times, 0.5), "s", 0, "")
	f.add("verdict to last object, p99", f.quietP99, "s", limit, fmt.Sprintf("%d verdicts, %d pods each", len(times), f.podsOf(0)))
	return nil
}

func percentile(times []time.Duration, p float64) float64 {
	s := slices.Sorted(slices.Values(times))
	return s[min(len(s)-1, int(math.Ceil(p*float64(len(s))))-1)].Seconds()
}

func (f *figures) closings(ctx context.Context) ([]time.Duration, error) {
	var times []time.Duration
	for run := range f.options.runs {
		node := (run*7919 + 13) % len(f.uids)
		took, err := f.closing(ctx, node)
		if err != nil {
			return nil, fmt.Errorf("node %d: %w", node, err)
		}
		times = append(times, took)
		if err := f.verdict(ctx, node, true); err != nil {
			return nil, err
		}
	}
	if _, err := f.quiet(ctx, 2*time.Second); err != nil {
		return nil, err
	}
	return times, nil
}

// verdict writes a node's verdict, as the SPIRE server's plugin does.
func (w *world) verdict(ctx context.Context, node int, good bool) error {
	// policy-sync writes the status of the same object.
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		t := &v1alpha1.NodeTrust{}
		if err := w.verifier.Get(ctx, client.ObjectKey{Name: nodeName(node)}, t); err != nil {
			return err
		}
		t.Spec = w.trusted(node)
		if !good {
			t.Spec.Verdict, t.Spec.Reference = v1alpha1.VerdictUntrusted, ""
			t.Spec.Reasons = []v1alpha1.Reason{{Check: "ima.file", Reason: "a file was run that no reference set knows"}}
		}
		return w.verifier.Update(ctx, t)
	})
}

// closing makes one node bad and waits until its pods have no label, it bears the taint, and its pods' addresses are
// in Calico's sets of revoked addresses and in Istio's policies.
func (w *world) closing(ctx context.Context, node int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	pods := &corev1.PodList{}
	onNode := client.MatchingFields{"spec.nodeName": nodeName(node)}
	if err := w.api.List(ctx, pods, onNode); err != nil {
		return 0, err
	}
	begun := time.Now()
	if err := w.verdict(ctx, node, false); err != nil {
		return 0, err
	}
	open := map[string]bool{}
	var addresses []string
	for i := range pods.Items {
		if p := &pods.Items[i]; p.Labels[v1alpha1.PodAttestedLabel] == v1alpha1.True {
			open[p.Namespace+"/"+p.Name] = true
			addresses = append(addresses, p.Status.PodIP)
		}
	}
	changes, err := w.api.Watch(ctx, &corev1.PodList{}, onNode, &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: pods.ResourceVersion}})
	if err != nil {
		return 0, err
	}
	defer changes.Stop()
	for len(open) > 0 {
		e, ok := <-changes.ResultChan()
		if !ok {
			return 0, fmt.Errorf("%d pods of %s still bear the label: %w", len(open), nodeName(node), ctx.Err())
		}
		if p, ok := e.Object.(*corev1.Pod); ok && p.Labels[v1alpha1.PodAttestedLabel] != v1alpha1.True {
			delete(open, p.Namespace+"/"+p.Name)
		}
	}
	return time.Since(begun), w.poll(ctx, 3*time.Minute, 10*time.Millisecond, "the rest is closed", func() (bool, error) { return w.closed(ctx, node, addresses) })
}

func (w *world) closed(ctx context.Context, node int, addresses []string) (bool, error) {
	n := &corev1.Node{}
	if err := w.api.Get(ctx, client.ObjectKey{Name: nodeName(node)}, n); err != nil {
		return false, err
	}
	if !slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == v1alpha1.UntrustedTaint }) {
		return false, fmt.Errorf("%s bears no taint", n.Name)
	}
	for _, of := range []struct{ api, kind string }{{"projectcalico.org/v3", "GlobalNetworkSetList"}, {"security.istio.io/v1", "AuthorizationPolicyList"}} {
		list := &unstructured.UnstructuredList{}
		list.SetAPIVersion(of.api)
		list.SetKind(of.kind)
		if err := w.api.List(ctx, list, client.MatchingLabels{v1alpha1.OwnerLabel: v1alpha1.OwnerValue}); err != nil {
			return false, err
		}
		var text strings.Builder
		for i := range list.Items {
			if strings.Contains(list.Items[i].GetName(), "revoked") {
				fmt.Fprint(&text, list.Items[i].Object["spec"])
			}
		}
		for _, a := range addresses {
			if !strings.Contains(text.String(), a+"/32") {
				return false, fmt.Errorf("%s is in no %s of revoked addresses", a, strings.TrimSuffix(of.kind, "List"))
			}
		}
	}
	return true, nil
}

// onePod measures what policy-sync spends on the change of one pod.
func (f *figures) onePod(ctx context.Context) error {
	const changes = 50
	idle, begun := f.processor(), time.Now()
	time.Sleep(5 * time.Second)
	rate := (f.processor() - idle).Seconds() / time.Since(begun).Seconds()
	used, begun := f.processor(), time.Now()
	for i := range changes {
		n := (i * 104_729) % f.pods
		p := f.pod(n, f.generation[n])
		patch := fmt.Appendf(nil, `{"metadata":{"labels":{"turn":"%d"}}}`, i)
		if err := f.api.Patch(ctx, p, client.RawPatch("application/merge-patch+json", patch)); err != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	spent := (f.processor() - used).Seconds() - rate*time.Since(begun).Seconds()
	f.add(whatOnePod, max(0, 1000*spent/changes), "ms", 0, fmt.Sprintf("%d changes, what it spends at rest subtracted", changes))
	return nil
}

// verdictsUnderLoad measures verdicts again while a team applies a large policy every second and while pods are rolled.
func (f *figures) verdictsUnderLoad(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	trouble := make(chan error, 1)
	go func() { trouble <- f.applyLargest(ctx) }()
	times, err := f.closings(ctx)
	cancel()
	if err := errors.Join(err, <-trouble); err != nil {
		return err
	}
	f.add("the same while a team applies its largest policy every second, p99", percentile(times, 0.99)/f.quietP99, "x", 1.5,
		fmt.Sprintf("%.3g s", percentile(times, 0.99)))
	return nil
}

// applyLargest changes the largest policy that the API and policy-sync take, once a second, until ctx ends.
func (f *figures) applyLargest(ctx context.Context) error {
	p := largest(namespace(0))
	if err := f.api.Create(ctx, p); err != nil {
		return fmt.Errorf("the largest policy: %w", err)
	}
	defer func() { _ = f.api.Delete(context.WithoutCancel(ctx), p) }()
	for turn := 0; ctx.Err() == nil; turn++ {
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
			patch := fmt.Appendf(nil, `{"spec":{"workloads":{"serviceAccount":"large-%d"}}}`, turn%2)
			if err := f.api.Patch(ctx, p, client.RawPatch("application/merge-patch+json", patch)); err != nil && ctx.Err() == nil {
				return fmt.Errorf("the largest policy: %w", err)
			}
		}
	}
	return nil
}

func largest(namespace string) *v1alpha1.TrustPolicy {
	p := policy(namespace, "large-0")
	p.Name = "largest"
	rule := v1alpha1.IngressRule{Ports: []int32{8443}}
	for i := range 64 {
		rule.From = append(rule.From, v1alpha1.Peer{Namespace: fmt.Sprintf("caller-%02d", i), ServiceAccount: "caller"})
	}
	for i := range 16 {
		h := v1alpha1.HTTPRule{Methods: []string{"GET", "POST"}}
		for j := range 16 {
			h.Paths = append(h.Paths, fmt.Sprintf("/api/v1/resources-%02d/items/%03d", i, j))
		}
		rule.HTTP = append(rule.HTTP, h)
	}
	p.Spec.Ingress = []v1alpha1.IngressRule{rule}
	return p
}

// manyAtOnce fails a tenth of the nodes within a second and waits until all are closed.
func (f *figures) manyAtOnce(ctx context.Context) error {
	many := max(1, len(f.uids)/10)
	if err := f.roll(ctx); err != nil {
		return err
	}
	begun := time.Now()
	if err := f.each(ctx, 0, many, func(ctx context.Context, i int) error { return f.verdict(ctx, i, false) }); err != nil {
		return err
	}
	told := time.Since(begun)
	want := f.size.pods
	for i := range many {
		want -= f.podsOf(i)
	}
	err := f.poll(ctx, 10*time.Minute, 100*time.Millisecond, "all are closed", func() (bool, error) {
		have, err := f.attested(ctx)
		return have <= want, err
	})
	if err != nil {
		return err
	}
	f.add("a tenth of the nodes fails: first verdict to the last label", time.Since(begun).Seconds(), "s", 10,
		fmt.Sprintf("%d nodes, all verdicts written after %.2g s", many, told.Seconds()))
	if err := f.each(ctx, 0, many, func(ctx context.Context, i int) error { return f.verdict(ctx, i, true) }); err != nil {
		return err
	}
	_, err = f.quiet(ctx, 5*time.Second)
	return err
}

// roll measures verdicts while a tenth of the pods is replaced.
func (f *figures) roll(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	trouble := make(chan error, 1)
	go func() { trouble <- f.replace(ctx) }()
	times, err := f.closings(ctx)
	cancel()
	if err := errors.Join(err, <-trouble); err != nil {
		return err
	}
	f.add("the same while a tenth of the pods is rolled, p99", percentile(times, 0.99)/f.quietP99, "x", 1.5,
		fmt.Sprintf("%.3g s, %d pods replaced meanwhile", percentile(times, 0.99), f.rolled))
	return nil
}

// replace deletes pods and makes others in their places, a tenth of all within the time that churn says, until ctx ends.
func (f *figures) replace(ctx context.Context) error {
	most := f.pods / 10
	pace := time.NewTicker(max(time.Millisecond, f.options.churn/time.Duration(max(1, most))))
	defer pace.Stop()
	f.rolled = 0
	now := int64(0)
	for n := 0; n < most; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-pace.C:
		}
		// The last tenth by number: no other figure counts on these pods' names.
		i := f.pods - 1 - n
		generation := f.generation[i]
		err := f.api.Delete(ctx, f.pod(i, generation), &client.DeleteOptions{GracePeriodSeconds: &now})
		if err == nil {
			f.generation[i]++
			err = f.createPod(context.WithoutCancel(ctx), f.pod(i, generation+1))
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		f.rolled++
	}
	return nil
}
