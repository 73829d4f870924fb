package reference

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestACommandLineIsSplitAsTheKernelDoes(t *testing.T) {
	cases := map[string]struct {
		line   string
		args   []string
		params map[string][]string
	}{
		"nothing":                        {"", []string{}, map[string][]string{}},
		"words":                          {" quiet  a=1\tb\n", []string{"quiet", "a=1", "b"}, map[string][]string{"quiet": {""}, "a": {"1"}, "b": {""}}},
		"a value in quotes":              {`a="b c" d`, []string{"a=b c", "d"}, map[string][]string{"a": {"b c"}, "d": {""}}},
		"a word in quotes":               {`"te st" "init=/x"`, []string{"te st", "init=/x"}, map[string][]string{"te st": {""}, "init": {"/x"}}},
		"word and value in quotes":       {`"a="b c""`, []string{"a=b", `c""`}, map[string][]string{"a": {"b"}, `c""`: {""}}},
		"quotes within a word":           {`a=b"c d"e f`, []string{`a=b"c d"e`, "f"}, map[string][]string{"a": {`b"c d"e`}, "f": {""}}},
		"a quote without its end":        {`a="b c`, []string{"a=b c"}, map[string][]string{"a": {"b c"}}},
		"a quote alone":                  {`" `, []string{" "}, map[string][]string{" ": {""}}},
		"an empty value":                 {`a= b=""`, []string{"a=", "b="}, map[string][]string{"a": {""}, "b": {""}}},
		"an = at the begin":              {`=a=b`, []string{"=a=b"}, map[string][]string{"=a": {"b"}}},
		"dashes in names":                {`a-b=c-d a_b=e`, []string{"a-b=c-d", "a_b=e"}, map[string][]string{"a_b": {"c-d", "e"}}},
		"a no-break space separates":     {"a\xa0test", []string{"a", "test"}, map[string][]string{"a": {""}, "test": {""}}},
		"what init gets is no parameter": {"quiet -- lockdown=integrity", []string{"quiet", "--", "lockdown=integrity"}, map[string][]string{"quiet": {""}}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.args, kernelArgs(c.line)); diff != "" {
				t.Errorf("args (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.params, kernelParams(c.line)); diff != "" {
				t.Errorf("params (-want +got):\n%s", diff)
			}
		})
	}
}
