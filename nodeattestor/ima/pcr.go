package ima

// PCR is the register that the kernel extends with each entry of its list (Linux, CONFIG_IMA_MEASURE_PCR_IDX, whose default
// this is).
const PCR = 10
