package calico

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// Limits of one object. Calico's definitions of projectcalico.org/v3 take selectors of 1,024 characters and 1,024 rules in a
// direction, etcd takes 1.5 MiB. A policy is split long before, since its rules are dealt out by a hash.
const (
	maxSelector   = trustgraph.MaxCalicoSelector
	rulesPerShard = 256
	bytesPerShard = 192 << 10
)

// choice is flows whose other ends differ in their service account alone, or in the policy that selects them.
type choice struct {
	first   desired.Flow
	rest    []string // further clauses of the selector
	members []string
}

// passes returns one rule for all flows whose other ends Calico can name as a set. Every rule is a Pass, so their order means
// nothing; they are sorted.
func passes(flows []desired.Flow, ingress bool) []v3.Rule {
	choices, order := map[string]*choice{}, []string(nil)
	for _, f := range flows {
		for _, rest := range narrow(f) {
			key := fmt.Sprintf("%q %t %q %v %t", f.Namespace, f.PolicyLabel != "", rest, f.Ports, f.Ambient)
			c := choices[key]
			if c == nil {
				c = &choice{first: f, rest: rest}
				choices[key], order = c, append(order, key)
			}
			c.members = append(c.members, member(f))
		}
	}
	slices.Sort(order)
	var out []v3.Rule
	for _, key := range order {
		c := choices[key]
		for _, selector := range selectors(c) {
			rule := v3.Rule{Action: v3.Pass}
			entity := v3.EntityRule{NamespaceSelector: "all()", Selector: selector}
			if ingress {
				rule.Source = entity
			} else {
				rule.Destination = entity
			}
			setPorts(&rule, c.first)
			out = append(out, rule)
		}
	}
	return out
}

func member(f desired.Flow) string {
	if f.PolicyLabel != "" {
		return f.PolicyLabel
	}
	return f.ServiceAccount
}

// selectors writes a choice as selectors, each within the limit: attested pods of one namespace that are a member.
func selectors(c *choice) []string {
	slices.Sort(c.members)
	c.members = slices.Compact(c.members)
	var out []string
	for from := 0; from < len(c.members); {
		to := from + 1
		text := whole(c, c.members[from:to])
		for to < len(c.members) {
			longer := whole(c, c.members[from:to+1])
			if len(longer) > maxSelector {
				break
			}
			text, to = longer, to+1
		}
		out, from = append(out, text), to
	}
	return out
}

func whole(c *choice, members []string) string {
	parts := []string{attested(), namespaceIs(c.first.Namespace)}
	if set := among(c.first.PolicyLabel != "", members); set != "" {
		parts = append(parts, set)
	}
	return and(append(append(parts, c.rest...), pods())...)
}

// among selects pods with one of some service accounts, or with the label of one of some policies; no text for any pod.
func among(policies bool, members []string) string {
	switch {
	case len(members) == 1 && members[0] == "":
		return ""
	case !policies && len(members) == 1:
		return eq(serviceAccountLabel, members[0])
	case !policies:
		return oneOf(serviceAccountLabel, members, false)
	case len(members) == 1:
		return eq(members[0], v1alpha1.True)
	}
	parts := make([]string, 0, len(members))
	for _, label := range members {
		parts = append(parts, eq(label, v1alpha1.True))
	}
	return "(" + strings.Join(parts, " || ") + ")"
}

// narrow returns what tags and labels of the other end a flow asks for, as clauses. Lists of values that are too long for one
// selector are dealt out into several: the flow is their union.
func narrow(f desired.Flow) [][]string {
	tags, labels := f.Tags, f.Selector
	room := maxSelector - len(whole(&choice{first: f}, []string{member(f)}))
	return halve(tags, labels, room)
}

func halve(tags map[string][]string, labels *metav1.LabelSelector, room int) [][]string {
	var clauses []string
	for _, key := range sortedKeys(tags) {
		clauses = append(clauses, oneOf(v1alpha1.PodTagPrefix+key, tags[key], false))
	}
	clauses = append(clauses, labelSelector(labels)...)
	size := 0
	for _, c := range clauses {
		size += len(c) + len(" && ")
	}
	if size <= room {
		return [][]string{clauses}
	}
	longest, key, at := 1, "", -1
	for _, k := range sortedKeys(tags) {
		if len(tags[k]) > longest {
			longest, key = len(tags[k]), k
		}
	}
	if labels != nil {
		for i, e := range labels.MatchExpressions {
			if e.Operator == metav1.LabelSelectorOpIn && len(e.Values) > longest {
				longest, at = len(e.Values), i
			}
		}
	}
	half := func(values []string, second bool) []string {
		values = slices.Sorted(slices.Values(values))
		if second {
			return values[len(values)/2:]
		}
		return values[:len(values)/2]
	}
	var out [][]string
	for _, second := range []bool{false, true} {
		switch {
		case at >= 0:
			l := labels.DeepCopy()
			l.MatchExpressions[at].Values = half(l.MatchExpressions[at].Values, second)
			out = append(out, halve(tags, l, room)...)
		case key != "":
			t := map[string][]string{}
			for k, v := range tags {
				t[k] = v
			}
			t[key] = half(t[key], second)
			out = append(out, halve(t, labels, room)...)
		default: // nothing to split; trustgraph refuses such a policy
			return [][]string{clauses}
		}
	}
	return out
}

// Split takes a rule apart whose other end is one of a set: into what remains, the set's members, and a way to make the rule
// with other members. Such a rule means the same as one rule for each member, so a plan may add and take away single ones. ok
// is false for any other rule.
func Split(element any) (rest string, members []string, join func([]string) any, ok bool) {
	rule, _ := element.(map[string]any)
	for _, side := range []string{"source", "destination"} {
		entity, _ := rule[side].(map[string]any)
		selector, _ := entity["selector"].(string)
		clauses := strings.SplitN(selector, " && ", 4)
		if len(clauses) != 4 || clauses[0] != attested() {
			continue
		}
		members, policies := parse(clauses[2])
		if members == nil || among(policies, slices.Clone(members)) != clauses[2] || strings.ContainsAny(clauses[3], "|") {
			continue // not as Keelson writes it: it may mean more than its members
		}
		with := func(set string) map[string]any {
			out := clone(rule)
			e := clone(entity)
			e["selector"] = and(clauses[0], clauses[1], set, clauses[3])
			out[side] = e
			return out
		}
		data, err := json.Marshal(with(fmt.Sprint("policies ", policies)))
		if err != nil {
			return "", nil, nil, false
		}
		return string(data), members, func(members []string) any { return with(among(policies, members)) }, true
	}
	return "", nil, nil, false
}

func clone(m map[string]any) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// parse reads what among writes.
func parse(set string) (members []string, policies bool) {
	if one, found := strings.CutPrefix(set, serviceAccountLabel+" == "); found {
		return []string{strings.Trim(one, "'")}, false
	}
	if list, found := strings.CutPrefix(set, serviceAccountLabel+" in { "); found {
		for _, v := range strings.Split(strings.TrimSuffix(list, " }"), ", ") {
			members = append(members, strings.Trim(v, "'"))
		}
		return members, false
	}
	for _, v := range strings.Split(strings.Trim(set, "()"), " || ") {
		label, found := strings.CutSuffix(v, " == '"+v1alpha1.True+"'")
		if !found || !strings.HasSuffix(label, v1alpha1.PolicyLabel("")) {
			return nil, false
		}
		members = append(members, label)
	}
	return members, true
}

// shard is a part of a workload's rules.
type shard struct{ ingress, egress []v3.Rule }

// deal deals rules out to as many shards as are needed. Policies of a tier are asked one after the other, and one that has no
// rule for a flow leaves it to the next, so rules that all pass mean the same in several policies as in one. A rule's shard
// does not depend on other rules, nor on the members of its set, unless the number of shards changes, which doubles.
func deal(ingress, egress []v3.Rule) []shard {
	texts := map[bool][]string{}
	size := map[bool]int{}
	for dir, list := range map[bool][]v3.Rule{true: ingress, false: egress} {
		for _, r := range list {
			text := ruleText(r)
			texts[dir], size[dir] = append(texts[dir], text), size[dir]+len(text)
		}
	}
	n := 1
	for most := max(len(ingress), len(egress)); most > n*rulesPerShard || size[true]+size[false] > n*bytesPerShard; {
		n *= 2
	}
	out := make([]shard, n)
	for i, r := range ingress {
		at := place(texts[true][i], n)
		out[at].ingress = append(out[at].ingress, r)
	}
	for i, r := range egress {
		at := place(texts[false][i], n)
		out[at].egress = append(out[at].egress, r)
	}
	return out
}

func ruleText(r v3.Rule) string {
	data, err := json.Marshal(r)
	if err != nil {
		return ""
	}
	return string(data)
}

func place(text string, n int) int {
	if n == 1 {
		return 0
	}
	h := fnv.New32a()
	var element any
	if json.Unmarshal([]byte(text), &element) == nil {
		if rest, _, _, ok := Split(element); ok {
			text = rest
		}
	}
	_, _ = h.Write([]byte(text))      // never fails
	return int(h.Sum32() % uint32(n)) //nolint:gosec // n is a small number of shards.
}

// shardName names the i-th object of a policy. A name that is another policy's own is passed over.
func shardName(policy string, i int, taken func(string) bool) string {
	name := policy
	for number := 2; i > 0; number++ {
		if name = policy + "." + strconv.Itoa(number); !taken(name) {
			i--
		}
	}
	return Name(name)
}

func setPorts(rule *v3.Rule, f desired.Flow) {
	if len(f.Ports) == 0 {
		return
	}
	tcp := numorstring.ProtocolFromString("TCP")
	rule.Protocol = &tcp
	for _, p := range f.Ports {
		rule.Destination.Ports = append(rule.Destination.Ports, numorstring.SinglePort(uint16(p))) //nolint:gosec // trustgraph refuses ports beyond 65535.
	}
	if f.Ambient {
		rule.Destination.Ports = append(rule.Destination.Ports, numorstring.SinglePort(HBONEPort))
	}
}
