package syncer

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// Metrics are policy-sync's own metrics. A nil *Metrics counts nothing.
type Metrics struct {
	passes      *prometheus.CounterVec
	duration    prometheus.Histogram
	lastSuccess prometheus.Gauge
	verdicts    *prometheus.GaugeVec
	operations  *prometheus.CounterVec
	applied     prometheus.Histogram
	pods        *prometheus.GaugeVec
	policies    *prometheus.GaugeVec
	withheld    *prometheus.GaugeVec
	revoked     prometheus.Gauge
	// parts and counted are the parts of the last graph with their counts, statuses those of then.
	parts    []*trustgraph.Part
	counted  []podCounts
	statuses []kube.PolicyStatus
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		passes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "keelson_policy_sync_passes_total",
			Help: "Passes of the loop, by result: ok, stale (planned again at once) or error."}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "keelson_policy_sync_pass_duration_seconds",
			Help: "How long a pass took.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15)}),
		lastSuccess: prometheus.NewGauge(prometheus.GaugeOpts{Name: "keelson_policy_sync_last_success_timestamp_seconds",
			Help: "When the last pass succeeded, Unix time."}),
		verdicts: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "keelson_policy_sync_nodes",
			Help: "Nodes by verdict: trusted, untrusted, stale, unknown."}, []string{"verdict"}),
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "keelson_policy_sync_operations_total",
			Help: "Operations by phase, action and result (ok, error)."}, []string{"phase", "action", "result"}),
		applied: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "keelson_policy_sync_verdict_to_applied_seconds",
			Help: "Time from a verdict's evidence to the change of its node's label and taint.", Buckets: prometheus.ExponentialBuckets(0.005, 2, 16)}),
		pods: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "keelson_policy_sync_pods",
			Help: "Running pods of enrolled namespaces by state: attested, refused (a policy selects it and is not met), unselected."}, []string{"state"}),
		policies: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "keelson_policy_sync_policies",
			Help: "TrustPolicies by the reason of their condition Programmed: Programmed, Audit, Invalid, NotEnrolled, Defeated, NotApplied."}, []string{"condition"}),
		withheld: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "keelson_policy_sync_withheld",
			Help: "Operations that failed or wait for one that did, by the kind of what they belong to: cluster, namespace, policy, labels, identity, machine."}, []string{"scope"}),
		revoked: prometheus.NewGauge(prometheus.GaugeOpts{Name: "keelson_policy_sync_revoked_addresses",
			Help: "Revoked addresses. Beyond 160000 the sets of revoked addresses are full, and a finding says so."}),
	}
	for _, c := range []prometheus.Collector{m.passes, m.duration, m.lastSuccess, m.verdicts, m.operations, m.applied, m.pods, m.policies, m.withheld, m.revoked} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *Metrics) pass(end time.Time, took time.Duration, err error) {
	if m == nil {
		return
	}
	m.duration.Observe(took.Seconds())
	switch {
	case err == nil:
		m.passes.WithLabelValues("ok").Inc()
		m.lastSuccess.Set(float64(end.UnixMilli()) / 1000)
	case IsStale(err):
		m.passes.WithLabelValues("stale").Inc()
	default:
		m.passes.WithLabelValues("error").Inc()
	}
}

func (m *Metrics) nodes(counts map[v1alpha1.Verdict]int) {
	if m == nil {
		return
	}
	for _, v := range []v1alpha1.Verdict{v1alpha1.VerdictTrusted, v1alpha1.VerdictUntrusted, v1alpha1.VerdictStale, v1alpha1.VerdictUnknown} {
		m.verdicts.WithLabelValues(string(v)).Set(float64(counts[v]))
	}
}

func (m *Metrics) operation(o plan.Operation, err error) {
	if m == nil {
		return
	}
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.operations.WithLabelValues(o.Phase.String(), string(o.Action), result).Inc()
}

func (m *Metrics) verdict(took time.Duration) {
	if m != nil {
		m.applied.Observe(took.Seconds())
	}
}

// scopes are what the parts of operations are called in metrics.
var scopes = map[plan.PartKind]string{plan.Cluster: "cluster", plan.Namespace: "namespace", plan.LeavingIn: "namespace", plan.Policy: "policy",
	plan.Leaving: "policy", plan.Labels: "labels", plan.Identity: "identity", plan.IdentityAt: "identity", plan.Machine: "machine"}

// state counts pods, policies and what is withheld.
func (m *Metrics) state(g trustgraph.Graph, statuses []kube.PolicyStatus, withheld []Failure) {
	if m == nil {
		return
	}
	counted := make([]podCounts, len(g.Parts))
	var sum podCounts
	for i, part := range g.Parts {
		if i < len(m.parts) && m.parts[i] == part {
			counted[i] = m.counted[i]
		} else {
			counted[i] = countPods(part)
		}
		sum = sum.plus(counted[i])
	}
	m.parts, m.counted = g.Parts, counted
	pods := map[string]int{"attested": sum.attested, "refused": sum.refused, "unselected": sum.unselected}
	waiting := map[string]int{}
	for _, scope := range scopes {
		waiting[scope] = 0
	}
	for _, f := range withheld {
		waiting[scopes[parts(f.Operation)[0].Kind]]++
	}
	m.revoked.Set(float64(len(g.Revoked)))
	set(m.pods, pods)
	set(m.withheld, waiting)
	if len(statuses) == 0 || !snapshot.Same(m.statuses, statuses) {
		m.policies.Reset()
		set(m.policies, byCondition(statuses))
		m.statuses = statuses
	}
}

// byCondition counts policies by the reason of their condition Programmed.
func byCondition(statuses []kube.PolicyStatus) map[string]int {
	out := map[string]int{}
	for _, st := range statuses {
		if c := meta.FindStatusCondition(st.Status.Conditions, v1alpha1.ConditionProgrammed); c != nil {
			out[c.Reason]++
		}
	}
	return out
}

// podCounts are running pods of an enrolled namespace, by state.
type podCounts struct{ attested, refused, unselected int }

func (c podCounts) plus(o podCounts) podCounts {
	return podCounts{c.attested + o.attested, c.refused + o.refused, c.unselected + o.unselected}
}

func countPods(part *trustgraph.Part) podCounts {
	var out podCounts
	for _, p := range part.Pods {
		switch {
		case p.Ended || p.Mode == "":
		case p.Attested:
			out.attested++
		case len(p.Matches) > 0:
			out.refused++
		default:
			out.unselected++
		}
	}
	return out
}

func set(gauge *prometheus.GaugeVec, values map[string]int) {
	for label, n := range values {
		gauge.WithLabelValues(label).Set(float64(n))
	}
}
