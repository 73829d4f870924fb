package reference

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/interpreter"
	"go.yaml.in/yaml/v3"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
)

// Limits of conditions.
const (
	MaxConditions      = 32
	MaxConditionLength = 2048      // bytes of an expression
	maxMessageLength   = 512       // bytes
	conditionCost      = 1_000_000 // CEL cost units for one evaluation: some ten milliseconds
)

// condition is a CEL expression (github.com/google/cel-spec) over proven facts that must be true.
// It only narrows what a set accepts.
type condition struct {
	expr    string
	message string // for a person, when it is not true
	program cel.Program
	needs   []string // the facts that it reads, sorted
}

// String is the condition for a person.
func (c condition) String() string { return c.expr + " (" + c.message + ")" }

// fact is one thing that conditions may read, and how it comes from what was proven; false
// where it was not.
type fact struct {
	name string
	kind *cel.Type
	of   func(p proof) (any, bool)
	// missing says why there is no value, for a person; "" where the name says enough.
	missing string
}

// proof is what a condition may look at: what quoted PCRs, the EK's certificate and the asset tag
// prove of one machine.
type proof struct {
	boot  eventlog.Facts
	maker Maker
	tag   map[string]string // nil where no tag was verified
	list  *watched          // nil where no measured file is proven
}

// facts are what conditions may read. A fact that the evidence does not prove is absent, which
// makes an expression that depends on it an error, as CEL's logic has it, and an error is a
// refusal: nothing is true for want of proof. There is no has() for the same reason.
var facts = func() []fact {
	all := []fact{
		{name: "bank", kind: cel.StringType, of: func(p proof) (any, bool) { return p.boot.Bank, p.boot.Bank != "" }},
	}
	for _, c := range components {
		for _, f := range c.facts {
			all = append(all, fact{name: f.name, kind: f.kind, of: func(p proof) (any, bool) { return f.of(p.boot) }})
		}
	}
	return append(all, machineFacts...)
}()

// machineFacts are those that come from elsewhere than the boot.
var machineFacts = []fact{
	{name: "ima.paths", kind: cel.ListType(cel.StringType), of: func(p proof) (any, bool) { return p.list.pathsKnown() },
		missing: fmt.Sprintf("no measured file is proven, more than %d paths or %d bytes of them are, or one is not UTF-8", maxPaths, maxPathBytes)},
	{name: "ima.policies", kind: cel.ListType(cel.StringType), of: func(p proof) (any, bool) { return p.list.policiesKnown() },
		missing: fmt.Sprintf("the kernel recorded no policy, or more than %d", maxPolicies)},
	{name: "tag", kind: cel.MapType(cel.StringType, cel.StringType), of: func(p proof) (any, bool) { return p.tag, p.tag != nil },
		missing: "no asset tag was verified"},
	{name: "tpm.manufacturer", kind: cel.StringType, of: func(p proof) (any, bool) { return word(p.maker.Manufacturer) }, missing: uncertified},
	{name: "tpm.vendor", kind: cel.StringType, of: func(p proof) (any, bool) { return word(p.maker.vendor()) }, missing: uncertified},
	{name: "tpm.model", kind: cel.StringType, of: func(p proof) (any, bool) { return word(p.maker.Model) }, missing: uncertified},
	{name: "tpm.version", kind: cel.StringType, of: func(p proof) (any, bool) { return word(p.maker.Version) }, missing: uncertified},
}

const uncertified = "no certificate under a trusted root says it of the EK"

// maxWord bounds a word of a certificate, in bytes; TPMs' models and versions have a dozen.
const maxWord = 256

// word is a text of a certificate, where there is one that CEL can hold.
func word(s string) (any, bool) { return s, s != "" && len(s) <= maxWord && utf8.ValidString(s) }

// environment is the language of conditions: CEL's standard library without has(), and the facts.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	opts := []cel.EnvOption{
		cel.ClearMacros(), cel.Macros(cel.AllMacro, cel.ExistsMacro, cel.ExistsOneMacro, cel.MapMacro, cel.MapFilterMacro, cel.FilterMacro),
		cel.ParserRecursionLimit(64), cel.ParserExpressionSizeLimit(MaxConditionLength),
	}
	for _, f := range facts {
		opts = append(opts, cel.Variable(f.name, f.kind))
	}
	return cel.NewEnv(opts...)
})

// compile parses and type-checks an expression: a bool that reads a fact.
func compile(expr, message string) (condition, error) {
	env, err := environment()
	if err != nil {
		return condition{}, fmt.Errorf("language: %w", err)
	}
	tree, issues := env.Compile(expr)
	if err := issues.Err(); err != nil {
		return condition{}, err
	}
	if tree.OutputType() != cel.BoolType {
		return condition{}, fmt.Errorf("it is a %s, not true or false", tree.OutputType())
	}
	c := condition{expr: expr, message: message, needs: reads(tree.NativeRep())}
	if len(c.needs) == 0 {
		return condition{}, fmt.Errorf("it reads no fact, so it says nothing about a machine")
	}
	c.program, err = env.Program(tree, cel.CostLimit(conditionCost), cel.OptimizeRegex(interpreter.MatchesRegexOptimization))
	return c, err
}

// Reads tells whether a condition of the set reads a fact, or one of those that begin with a name
// and a dot.
func (s Set) Reads(name string) bool {
	return slices.ContainsFunc(s.conditions, func(c condition) bool {
		return slices.ContainsFunc(c.needs, func(fact string) bool { return fact == name || strings.HasPrefix(fact, name+".") })
	})
}

// reads lists the facts in a checked expression.
func reads(tree *ast.AST) []string {
	var out []string
	for _, ref := range tree.ReferenceMap() {
		if slices.ContainsFunc(facts, func(f fact) bool { return f.name == ref.Name }) && !slices.Contains(out, ref.Name) {
			out = append(out, ref.Name)
		}
	}
	slices.Sort(out)
	return out
}

// holds evaluates a condition over facts by name. Whatever is not true is false, with the reason.
func (c condition) holds(known map[string]any) (bool, string) {
	out, _, err := c.program.Eval(known)
	if err == nil && out.Value() == true {
		return true, ""
	}
	if err == nil {
		return false, "does not hold"
	}
	var unproven []string
	for _, name := range c.needs {
		if _, ok := known[name]; !ok {
			unproven = append(unproven, missing(name))
		}
	}
	if len(unproven) > 0 {
		return false, "cannot be decided: the evidence does not prove " + strings.Join(unproven, ", ")
	}
	return false, fmt.Sprintf("cannot be decided (%v)", err)
}

// missing names a fact that is not proven, and why where its name does not say enough.
func missing(name string) string {
	i := slices.IndexFunc(facts, func(f fact) bool { return f.name == name })
	if i < 0 || facts[i].missing == "" {
		return name
	}
	return name + " (" + facts[i].missing + ")"
}

// known are the facts that evidence proves, by name.
func known(p proof) map[string]any {
	out := map[string]any{}
	for _, fact := range facts {
		if v, ok := fact.of(p); ok {
			out[fact.name] = v
		}
	}
	return out
}

func (c *checker) conditions(ev Evidence) {
	if len(c.set.conditions) == 0 {
		return
	}
	p := proof{boot: c.facts, maker: ev.Maker, tag: ev.Tag}
	if c.list != nil {
		p.list = c.list.watched
	}
	have := known(p)
	for i, cond := range c.set.conditions {
		if ok, why := cond.holds(have); !ok {
			c.refuse("reference.condition", "condition %d of %s %s: %s (%s)", i+1, c, why, cond.message, cond.expr)
		}
	}
}

func (p *parser) conditions(n *yaml.Node) []condition {
	var out []condition
	p.sequence(n, "conditions", func(item *yaml.Node) {
		if len(out) == MaxConditions {
			p.at(item, "more than the %d conditions allowed", MaxConditions)
		}
		if len(out) >= MaxConditions {
			return
		}
		out = append(out, p.condition(item))
	})
	return out
}

func (p *parser) condition(n *yaml.Node) condition {
	var expr, message string
	p.mapping(n, "condition", func(key string, v *yaml.Node) bool {
		switch key {
		case "expr":
			expr = p.text(v, key)
		case "message":
			message = p.text(v, key)
		default:
			return false
		}
		return true
	})
	if message == "" || len(message) > maxMessageLength {
		p.at(n, "a condition needs a message of at most %d bytes, for the person who finds it broken", maxMessageLength)
	}
	if expr == "" || len(expr) > MaxConditionLength {
		p.at(n, "a condition needs an expr of at most %d bytes", MaxConditionLength)
		return condition{}
	}
	c, err := compile(expr, message)
	if err != nil {
		p.at(n, "condition %.200q: %v", expr, err)
	}
	return c
}
