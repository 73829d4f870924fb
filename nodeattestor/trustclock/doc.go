// Package trustclock is the time of a server as appraisals and verdicts need it.
//
// It protects against a machine's clock that somebody sets, forwards or backwards, while the server runs: NTP after a
// start without a battery, an administrator, a virtual machine that was suspended, an attacker on the network of a
// server that believes unsigned time. Therefore
//
//   - a challenge expires by the monotonic clock, which nobody sets ([Reading].Elapsed);
//   - what has a validity is judged by the later of the machine's clock and the one that the server began with: setting
//     the clock back makes nothing valid again ([Reading].Valid);
//   - receipts, which order verdicts, never go back, or a newer verdict would count as older ([Clock.Date]);
//   - where the Kubernetes API's clock is known, receipts follow it as soon as the machine's is off by more than
//     [MaxOffset]: policy-sync believes no verdict of the future, and one would stand in the way of every later one;
//   - what is out of date by a clock that was set proves nothing about a machine ([Excuse]).
//
// It does not protect against a server that starts with a wrong clock and knows no Kubernetes API: nothing tells it.
package trustclock
