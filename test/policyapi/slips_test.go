package policyapi_test

import (
	"fmt"
	"strings"
	"testing"
)

// slip is a spec that the API refuses, and a part of the sentence with which it does.
type slip struct{ spec, sentence string }

const (
	peer    = "workloads: {serviceAccount: api}\ningress: [{from: [%s]}]"
	request = "workloads: {serviceAccount: api}\ningress: [{from: [{serviceAccount: front}], http: [%s]}]"
	require = "workloads: {serviceAccount: api}\nrequire: %s"
)

var slips = map[string]slip{
	"a method in lower case":         {fmt.Sprintf(request, "{methods: [get]}"), "an HTTP method is written in upper case"},
	"a method with a wildcard":       {fmt.Sprintf(request, `{methods: ["*"]}`), "leave methods out for every method"},
	"an empty method":                {fmt.Sprintf(request, `{methods: [""]}`), "an HTTP method is written in upper case"},
	"two methods in one text":        {fmt.Sprintf(request, `{methods: ["GET,POST"]}`), "an HTTP method is written in upper case"},
	"a path without /":               {fmt.Sprintf(request, "{paths: [charge]}"), "a path begins with /"},
	"an empty path":                  {fmt.Sprintf(request, `{paths: [""]}`), "paths[0]"},
	"a path by its end":              {fmt.Sprintf(request, `{paths: ["*.js"]}`), "a path begins with /"},
	"a URL":                          {fmt.Sprintf(request, `{paths: ["https://api/charge"]}`), "a path begins with /"},
	"a path with a name in braces":   {fmt.Sprintf(request, `{paths: ["/orders/{id}"]}`), "a name such as {id} is not known"},
	"a name in braces midway":        {fmt.Sprintf(request, `{paths: ["/orders/{id}/items"]}`), "one_star_or_two_stars_in_braces"},
	"a brace that is not closed":     {fmt.Sprintf(request, `{paths: ["/orders/{*"]}`), "paths[0]"},
	"a brace that is not opened":     {fmt.Sprintf(request, `{paths: ["/orders/*}"]}`), "paths[0]"},
	"a template within a segment":    {fmt.Sprintf(request, `{paths: ["/orders/a{*}"]}`), "paths[0]"},
	"a template after {**}":          {fmt.Sprintf(request, `{paths: ["/a/{**}/{*}"]}`), "paths[0]"},
	"a template and * at the end":    {fmt.Sprintf(request, `{paths: ["/a/{*}/b*"]}`), "paths[0]"},
	"a * as a segment":               {fmt.Sprintf(request, `{paths: ["/orders/*/items"]}`), "where_a_star_is_last"},
	"a * within a segment":           {fmt.Sprintf(request, `{paths: ["/ord*rs"]}`), "paths[0]"},
	"a path with a query":            {fmt.Sprintf(request, `{paths: ["/orders?id=1"]}`), "without_query_fragment_or_space"},
	"a path with a fragment":         {fmt.Sprintf(request, `{paths: ["/orders#top"]}`), "without_query_fragment_or_space"},
	"a path with a line's end":       {fmt.Sprintf(request, `{paths: ["/orders\n"]}`), "paths[0]"},
	"a path with a space":            {fmt.Sprintf(request, `{paths: ["/my orders"]}`), "paths[0]"},
	"a path of 513 characters":       {fmt.Sprintf(request, "{paths: [/"+strings.Repeat("a", 512)+"]}"), "may not be more than 512"},
	"an http rule that says nothing": {fmt.Sprintf(request, "{}"), "name methods or paths"},
	"an http rule with empty lists":  {fmt.Sprintf(request, "{methods: [], paths: []}"), "name methods or paths"},

	"a service account in upper case":       {"workloads: {serviceAccount: Api}", "a service account's name has lower-case letters"},
	"a service account with its namespace":  {fmt.Sprintf(peer, "{serviceAccount: shop/front}"), "it has no namespace before it"},
	"a peer's service account upper case":   {fmt.Sprintf(peer, "{serviceAccount: Front}"), "a service account's name has lower-case letters"},
	"a wildcard for service accounts":       {fmt.Sprintf(peer, `{serviceAccount: "*"}`), "a service account's name has lower-case letters"},
	"an empty service account":              {fmt.Sprintf(peer, `{serviceAccount: ""}`), "serviceAccount"},
	"a peer without service account":        {fmt.Sprintf(peer, "{namespace: shop}"), "serviceAccount"},
	"a service account of 63 characters":    {"workloads: {serviceAccount: " + strings.Repeat("a", 63) + "}", "at most 62 characters"},
	"a peer's account of 63 characters":     {fmt.Sprintf(peer, "{serviceAccount: "+strings.Repeat("a", 63)+"}"), "at most 62 characters"},
	"a wildcard for namespaces":             {fmt.Sprintf(peer, `{serviceAccount: front, namespace: "*"}`), "there is no wildcard"},
	"a namespace in upper case":             {fmt.Sprintf(peer, `{serviceAccount: front, namespace: Shop}`), "a namespace's name has lower-case letters"},
	"a namespace with a dot":                {fmt.Sprintf(peer, `{serviceAccount: front, namespace: a.b}`), "a namespace's name has lower-case letters"},
	"a namespace of 64 characters":          {fmt.Sprintf(peer, "{serviceAccount: front, namespace: "+strings.Repeat("a", 64)+"}"), "may not be more than 63"},
	"no workloads":                          {"workloads: {}", "name a serviceAccount or a selector"},
	"an empty service account of workloads": {`workloads: {serviceAccount: ""}`, "name a serviceAccount or a selector"},

	"an operator in lower case":          {"workloads: {selector: {matchExpressions: [{key: app, operator: in, values: [a]}]}}", `supported values: "In", "NotIn", "Exists", "DoesNotExist"`},
	"In without values":                  {"workloads: {selector: {matchExpressions: [{key: app, operator: In}]}}", "In and NotIn need values"},
	"NotIn with an empty list":           {"workloads: {selector: {matchExpressions: [{key: app, operator: NotIn, values: []}]}}", "In and NotIn need values"},
	"Exists with values":                 {"workloads: {selector: {matchExpressions: [{key: app, operator: Exists, values: [a]}]}}", "Exists and DoesNotExist have none"},
	"a label's key with a space":         {`workloads: {selector: {matchLabels: {"my app": a}}}`, "a label's key is a name"},
	"a label's key with two slashes":     {`workloads: {selector: {matchLabels: {"a/b/c": a}}}`, "a label's key is a name"},
	"a label's value with a space":       {`workloads: {selector: {matchLabels: {app: "a b"}}}`, "matchLabels.app"},
	"a label's value of 64 characters":   {"workloads: {selector: {matchLabels: {app: " + strings.Repeat("a", 64) + "}}}", "may not be more than 63"},
	"a key of an expression":             {`workloads: {selector: {matchExpressions: [{key: "a b", operator: Exists}]}}`, "matchExpressions[0].key"},
	"a peer's operator in lower case":    {fmt.Sprintf(peer, "{serviceAccount: front, podSelector: {matchExpressions: [{key: app, operator: exists}]}}"), `supported values: "In"`},
	"a peer's Exists with values":        {fmt.Sprintf(peer, "{serviceAccount: front, podSelector: {matchExpressions: [{key: app, operator: Exists, values: [a]}]}}"), "Exists and DoesNotExist have none"},
	"a peer's label's key with a space":  {fmt.Sprintf(peer, `{serviceAccount: front, podSelector: {matchLabels: {"my app": a}}}`), "a label's key is a name"},
	"a tag without values":               {fmt.Sprintf(require, "{node: {tags: {country: []}}}"), "a tag without values is met by no node"},
	"a tag with an empty value":          {fmt.Sprintf(require, `{node: {tags: {country: [""]}}}`), "tags.country"},
	"a tag whose value has a space":      {fmt.Sprintf(require, `{node: {tags: {country: ["D E"]}}}`), "tags.country"},
	"a tag whose key has a slash":        {fmt.Sprintf(require, `{node: {tags: {"a/b": [DE]}}}`), "a tag's key has at most 59"},
	"a tag whose key is too long":        {fmt.Sprintf(require, "{node: {tags: {"+strings.Repeat("k", 60)+": [DE]}}}"), "a tag's key has at most 59"},
	"nine tags":                          {fmt.Sprintf(require, "{node: {tags: {a: [x], b: [x], c: [x], d: [x], e: [x], f: [x], g: [x], h: [x], i: [x]}}}"), "tags"},
	"a peer's tag without values":        {fmt.Sprintf(peer, "{serviceAccount: front, tags: {country: []}}"), "a tag without values is met by no node"},
	"an empty reference set":             {fmt.Sprintf(require, `{node: {references: [""]}}`), "this name is empty"},
	"too many alternatives of a node":    {fmt.Sprintf(require, "{node: {tags: {a: [1a, 2a, 3a, 4a, 5a, 6a, 7a], b: [1a, 2a, 3a, 4a, 5a, 6a, 7a], c: [1a, 2a, 3a, 4a, 5a, 6a, 7a]}}}"), "more than 256 combinations"},
	"a verifier in upper case":           {fmt.Sprintf(require, "{image: {verifiedBy: [Release]}}"), "a verifier's name has at most 63 lower-case"},
	"an empty verifier":                  {fmt.Sprintf(require, `{image: {verifiedBy: [""]}}`), "a verifier's name has at most 63 lower-case"},
	"more verifiers than are named":      {fmt.Sprintf(require, "{image: {verifiedBy: [a, b], verifiedByAtLeast: 3}}"), "verifiedByAtLeast asks for more verifiers than verifiedBy names"},
	"a number of no verifiers":           {fmt.Sprintf(require, "{image: {verifiedByAll: [a], verifiedByAtLeast: 1}}"), "verifiedByAtLeast asks for more verifiers than verifiedBy names"},
	"at least no verifier":               {fmt.Sprintf(require, "{image: {verifiedBy: [a, b], verifiedByAtLeast: 0}}"), "verifiedByAtLeast"},
	"two of a verifier named twice":      {fmt.Sprintf(require, "{image: {verifiedBy: [a, a], verifiedByAtLeast: 2}}"), "each once"},
	"two of eleven verifiers":            {fmt.Sprintf(require, "{image: {verifiedBy: [a, b, c, d, e, f, g, h, i, j, k], verifiedByAtLeast: 2}}"), "at most 10 verifiers"},
	"five of ten and two digests":        {fmt.Sprintf(require, "{image: {verifiedBy: [a, b, c, d, e, f, g, h, i, j], verifiedByAtLeast: 5, digests: ['sha256:"+strings.Repeat("0a", 32)+"', 'sha256:"+strings.Repeat("0b", 32)+"']}}"), "more than 256 combinations"},
	"an empty verifier that must accept": {fmt.Sprintf(require, `{image: {verifiedByAll: [""]}}`), "a verifier's name has at most 63 lower-case"},
	"a tag in the place of a digest":     {fmt.Sprintf(require, "{image: {digests: [latest]}}"), "a digest is sha256: and 64 hexadecimal digits"},
	"a digest that is too short":         {fmt.Sprintf(require, "{image: {digests: ['sha256:abc']}}"), "a digest is sha256: and 64 hexadecimal digits"},
	"a digest in upper case":             {fmt.Sprintf(require, "{image: {digests: ['sha256:"+strings.Repeat("AB", 32)+"']}}"), "a digest is sha256: and 64 hexadecimal digits"},
	"a runtime that does not exist":      {fmt.Sprintf(require, "{runtime: hardened}"), "supported values"},
	"port 0":                             {"workloads: {serviceAccount: api}\ningress: [{from: [{serviceAccount: front}], ports: [0]}]", "greater than or equal to 1"},
	"port 65536":                         {"workloads: {serviceAccount: api}\negress: [{to: [{serviceAccount: front}], ports: [65536]}]", "less than or equal to 65535"},
	"a port's name":                      {"workloads: {serviceAccount: api}\ningress: [{from: [{serviceAccount: front}], ports: [http]}]", "ports"},
	"a rule without peers":               {"workloads: {serviceAccount: api}\ningress: [{from: []}]", "from"},
	"an empty rule":                      {"workloads: {serviceAccount: api}\ningress: [{}]", "from"},
	"an egress rule without peers":       {"workloads: {serviceAccount: api}\negress: [{to: []}]", "to"},
	"require.image.scan":                 {fmt.Sprintf(require, "{image: {verifiedBy: [release-key], scan: {maxSeverity: high, maxAge: 24h}}}"), "require.image.scan is not supported yet: remove it; this version would not check it"},
	"require.image.sbom":                 {fmt.Sprintf(require, "{image: {sbom: {}}}"), "require.image.sbom is not supported yet"},
	"require.image.provenance":           {fmt.Sprintf(require, "{image: {provenance: {builder: x}}}"), "require.image.provenance is not supported yet"},
	"require.image.drift":                {fmt.Sprintf(require, "{image: {drift: {}}}"), "require.image.drift is not supported yet"},
	"require.drift":                      {fmt.Sprintf(require, "{drift: {executables: deny}}"), "require.drift is not supported yet"},
	"require.image.scan that is no list": {fmt.Sprintf(require, "{image: {scan: true}}"), "scan"},
}

func TestTheAPIRefusesASlipWithASentence(t *testing.T) {
	for name, s := range slips {
		t.Run(name, func(t *testing.T) {
			if err := refusal(try(t, policy(t, "slip", s.spec)), s.sentence); err != nil {
				t.Errorf("%v\n%s", err, s.spec)
			}
		})
	}
}

func TestTheAPIRefusesNamesThatNoPolicyCanHave(t *testing.T) {
	const spec = "workloads: {serviceAccount: api}"
	for name, sentence := range map[string]string{"default-deny": "reserved for Keelson's own default deny", strings.Repeat("a", 201): "at most 200 characters"} {
		if err := refusal(try(t, policy(t, name, spec)), sentence); err != nil {
			t.Errorf("%.20s: %v", name, err)
		}
	}
	if err := try(t, policy(t, strings.Repeat("a", 200), spec)); err != nil {
		t.Errorf("200 characters: %v", err)
	}
}

func TestTheAPITakesWhatIsRight(t *testing.T) {
	for _, spec := range right {
		if err := try(t, policy(t, "right", spec)); err != nil {
			t.Errorf("%v\n%s", err, spec)
		}
	}
}

var right = []string{
	"workloads: {serviceAccount: api}",
	"workloads: {selector: {}}",
	"workloads: {serviceAccount: a.b-c.d, selector: {matchLabels: {app: api, example.org/x_y.z: ''}}}",
	"workloads: {selector: {matchExpressions: [{key: app, operator: In, values: [a, b]}, {key: x/y, operator: NotIn, values: ['']}, {key: z, operator: Exists}, {key: q, operator: DoesNotExist, values: []}]}}",
	fmt.Sprintf(request, `{methods: [GET, M-SEARCH, PATCH], paths: [/, "/*", /orders, "/orders/*", "/orders/{*}/items", "/a/{**}", "/a/{*}/{**}/x/", "/%7Bid%7D", "/é", "/a/b*"]}`),
	fmt.Sprintf(peer, "{serviceAccount: front, namespace: ''}"),
	fmt.Sprintf(peer, "{serviceAccount: "+strings.Repeat("a", 62)+", namespace: shop, tags: {country: [DE, FR], Rack.1: [a_b]}, podSelector: {matchLabels: {app: front}}}"),
	fmt.Sprintf(require, "{node: {references: [prod, 'a b/c'], tags: {country: [DE]}}, image: {verifiedBy: [release-key], digests: ['sha256:"+strings.Repeat("0a", 32)+"']}, runtime: restricted}"),
	fmt.Sprintf(require, "{node: {references: [], tags: {}}, image: {}, runtime: any}"),
	fmt.Sprintf(require, "{image: {verifiedByAll: [release-key, scan-key]}}"),
	fmt.Sprintf(require, "{image: {verifiedBy: [a, b, c], verifiedByAtLeast: 2, verifiedByAll: [release-key]}}"),
	fmt.Sprintf(require, "{image: {verifiedBy: [a, b, c, d, e, f, g, h, i, j], verifiedByAtLeast: 5}}"),
	"workloads: {serviceAccount: api}\ningress: [{from: [{serviceAccount: front}], ports: [1, 65535], http: [{paths: [/" + strings.Repeat("a", 511) + "]}]}]\negress: [{to: [{serviceAccount: db}], ports: [5432]}]",
}
