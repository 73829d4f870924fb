package serverplugin

import (
	"errors"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/nodeattestor/admission"
	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/trustclock"
	"github.com/keelson-project/keelson/nodeattestor/verify"
)

func TestTheAgentLearnsNoAddressesOfTheServer(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"an internal error":   {errors.New("dial tcp 10.0.0.1:6443: connection refused"), "the attestation could not be finished, try again; the server's audit log has the reason"},
		"its own message":     {verify.Malformed{Err: errors.New("evidence: read response: field secret: missing")}, "evidence: read response: field secret: missing"},
		"a claimed machine":   {admission.ErrClaimed, admission.ErrClaimed.Error()},
		"a hasty machine":     {admission.ErrOften, admission.ErrOften.Error()},
		"a full server":       {admission.ErrFull, admission.ErrFull.Error()},
		"a newer attestation": {errors.Join(errors.New("receive"), admission.ErrNewer), admission.ErrNewer.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			if got := told(tc.err).Error(); got != tc.want {
				t.Errorf("told %q, want %q", got, tc.want)
			}
		})
	}
}

func TestThreat22_HowAnAttestationEnds(t *testing.T) {
	refuse := func(checks ...string) error {
		var refusals nodeclaim.Refusals
		for _, c := range checks {
			refusals = append(refusals, *nodeclaim.Refuse(c, "why"))
		}
		return refusals
	}
	for name, tc := range map[string]struct {
		err     error
		proved  bool
		set     time.Duration
		outcome verify.Outcome
		code    codes.Code
	}{
		"proved bad":                                           {refuse("ima.file"), true, 0, verify.Untrusted, codes.PermissionDenied},
		"refused before the proof":                             {refuse("ek.chain"), false, 0, verify.Unproved, codes.PermissionDenied},
		"malformed before the proof":                           {verify.Malformed{Err: errors.New("cut")}, false, 0, verify.Unproved, codes.InvalidArgument},
		"malformed after the proof":                            {verify.Malformed{Err: errors.New("cut")}, true, 0, verify.Inconclusive, codes.Unavailable},
		"no answer":                                            {errors.New("the stream ended"), true, 0, verify.Inconclusive, codes.Unavailable},
		"a list that any process can make too long":            {refuse("ima.limit"), true, 0, verify.Inconclusive, codes.Unavailable},
		"a list that is too long, and something else":          {refuse("ima.limit", "pcr.value"), true, 0, verify.Untrusted, codes.PermissionDenied},
		"out of date":                                          {refuse("reference.expired", "tag.expired"), true, 0, verify.Untrusted, codes.PermissionDenied},
		"out of date by a clock that was set":                  {refuse("reference.expired", "tag.expired"), true, time.Hour, verify.Inconclusive, codes.Unavailable},
		"out of date by a clock that was set back":             {refuse("reference.notyet"), true, -time.Hour, verify.Inconclusive, codes.Unavailable},
		"proved bad whatever the clock says":                   {refuse("reference.expired", "ima.file"), true, time.Hour, verify.Untrusted, codes.PermissionDenied},
		"proved bad alone, by a server whose clock was set":    {refuse("ima.file"), true, time.Hour, verify.Untrusted, codes.PermissionDenied},
		"out of date by a clock that NTP moved by two minutes": {refuse("reference.expired"), true, 2 * time.Minute, verify.Untrusted, codes.PermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			now := trustclock.Reading{Step: tc.set}
			end := verify.Stop(tc.err)
			end.Bound = tc.proved
			end = believed(end, now)
			code := status.Code(statusOf(end))
			if end.Outcome() != tc.outcome || code != tc.code {
				t.Errorf("%s, %s; want %s, %s", end.Outcome(), code, tc.outcome, tc.code)
			} else if (code == codes.PermissionDenied) != (len(end.Refusals) > 0) {
				t.Errorf("%s with refusals %v", code, end.Refusals)
			}
			entry := entryOf(end, spiffeid.RequireTrustDomainFromString("example.org"), time.Now())
			if entry.Outcome != audit.Outcome(tc.outcome) || (entry.Error == "") != (len(entry.Refusals) > 0) {
				t.Errorf("audit line %+v", entry)
			}
			if verdictOf(end, spiffeid.TrustDomain{}, time.Now(), time.Now()).Trusted {
				t.Error("a verdict that trusts")
			}
		})
	}
}
