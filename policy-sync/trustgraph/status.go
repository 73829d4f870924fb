package trustgraph

import (
	"fmt"
	"strings"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// MaxRefused is how many refused pods a status names.
const MaxRefused = 32

// Status is what a TrustPolicy's status should say. The caller gives applied: whether
// every operation of the plan was carried out, and if not, why. Conditions carry no
// transition time; whoever writes them sets it when a condition's status changes.
func (g Graph) Status(p Policy, applied error) v1alpha1.TrustPolicyStatus {
	st := v1alpha1.TrustPolicyStatus{
		ObservedGeneration: p.Generation,
		Selected:           int32(len(p.Selected)), //nolint:gosec // a cluster's pods fit.
		Attested:           int32(len(p.Attested)), //nolint:gosec // a cluster's pods fit.
		LastAccepted:       p.LastAccepted,
	}
	st.Notes = p.Notes[:min(len(p.Notes), maxNotes)]
	for _, key := range p.Selected {
		if len(st.Refused) == MaxRefused {
			break
		}
		if why := g.refusal(key, p.Name); why != "" {
			st.Refused = append(st.Refused, v1alpha1.RefusedPod{Pod: key[len(p.Namespace)+1:], Reason: why})
		}
	}
	programmed := p.programmed(applied)
	st.Conditions = []metav1.Condition{p.AcceptedCondition(), programmed, p.attested(st.Refused)}
	if len(st.Refused) > 0 {
		st.Why = st.Refused[0].Reason
	} else if programmed.Status != metav1.ConditionTrue {
		st.Why = programmed.Message
	}
	return st
}

func (g Graph) refusal(key, policy string) string {
	namespace, name, _ := strings.Cut(key, "/")
	pod, _ := g.Pod(namespace, name)
	for _, m := range pod.Matches {
		if m.Policy == policy && !m.Met {
			return m.Refusal()
		}
	}
	return ""
}

// Refusal is what a status says of a pod that does not meet the policy: its reasons, cut to what a status takes.
func (m Match) Refusal() string { return joined(m.Reasons()) }

// AcceptedCondition says whether the policy as it is now is accepted.
func (p Policy) AcceptedCondition() metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionTrue, Reason: "Accepted", ObservedGeneration: p.Generation}
	if len(p.Problems) > 0 {
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "Invalid", joined(p.Problems)
	}
	return c
}

// attested is for those who wait: kubectl wait --for=condition=Attested.
func (p Policy) attested(refused []v1alpha1.RefusedPod) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionAttested, Status: metav1.ConditionFalse, ObservedGeneration: p.Generation}
	switch {
	case len(p.Selected) == 0:
		c.Reason, c.Message = "NoPods", "the policy selects no pod"
	case len(p.Attested) < len(p.Selected):
		c.Reason, c.Message = "Refused", fmt.Sprintf("%d of %d pods meet the policy", len(p.Attested), len(p.Selected))
		if len(refused) > 0 {
			c.Message = clip(fmt.Sprintf("%s; %s: %s", c.Message, refused[0].Pod, refused[0].Reason))
		}
	default:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, "Attested", fmt.Sprintf("%d of %d pods meet the policy", len(p.Attested), len(p.Selected))
	}
	return c
}

func (p Policy) programmed(applied error) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionProgrammed, Status: metav1.ConditionFalse, ObservedGeneration: p.Generation}
	switch {
	case !p.Accepted:
		c.Reason, c.Message = "Invalid", "the policy is not accepted"
	case len(p.Problems) > 0:
		c.Reason, c.Message = "LastAccepted", "the policy is not accepted as it is now; the last spec that was accepted stays in force"
	case p.Mode == "":
		c.Reason = "NotEnrolled"
		c.Message = fmt.Sprintf("the namespace is not enrolled; ask an administrator for: kubectl label namespace %s %s=%s",
			p.Namespace, v1alpha1.ModeLabel, v1alpha1.ModeAudit)
	case len(p.Blockers) > 0:
		c.Reason, c.Message = "Defeated", joined(p.Blockers)
	case applied != nil:
		c.Reason, c.Message = "NotApplied", clip(applied.Error())
	default:
		c.Status, c.Reason = metav1.ConditionTrue, "Programmed"
		if p.Mode == v1alpha1.ModeAudit {
			c.Reason, c.Message = "Audit", "the namespace is in audit mode: nothing is denied"
		}
	}
	return c
}

// maxText bounds a message, well below the API's limit for conditions (32768).
const maxText = 1024

func joined(texts []string) string {
	out := ""
	for i, t := range texts {
		if i > 0 {
			out += "; "
		}
		out += t
	}
	return clip(out)
}

// clip cuts a text between characters: what an API server cannot store as UTF-8 it stores otherwise, and every pass would find it
// changed.
func clip(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxText {
		return s
	}
	end := maxText - len("...")
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "..."
}
