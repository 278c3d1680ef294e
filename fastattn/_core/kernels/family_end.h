/* Forgets what a family of products defined for itself. */
#undef TILE
#undef TILE_EXPORT
#undef TILE_MOST
#undef TILE_KEYS_AT
#undef TILE_VALUES_AT
#undef TILE_UNITS
#undef TILE_COMPONENTS
#undef WHOLE_TILES
#undef WHOLE_GROUPS
#undef KEY_GROUP
#undef STEP_GROUP
#undef VALUE_PITCH
#undef UNIT
#undef MULTIPLY_TILES
#undef FA_MULTIPLY_OF
#undef FA_SCORES
#undef FA_VALUES
