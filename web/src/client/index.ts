/** The client of wan-streamer's calls: `Call` and what it is made of. It needs a browser, and no page elements. */

export { Call, TRANSPORTS } from "./call";
export { DEVICE_NAMES, listDevices } from "./devices";
export type { Choice } from "./devices";
export { CallError } from "./errors";
export type * from "./events";
export { askAbout } from "./server";
export type { About } from "./server";
export type { CallEvents, CallOptions, CallState, DeviceState, Why } from "./state";
export type * from "./transport";
export { socket } from "./socket";
export { webrtc } from "./webrtc";
